import { randomBytes } from 'node:crypto';
import { LunetteError } from '../core/errors.ts';
import {
  HEADER_BYTES,
  KEY_SLOTS,
  type KeySlot,
  keyMaterialBytes,
  type LuksHeader,
  SECTOR,
  writeKeySlot,
} from './header.ts';
import { emptyKeySlot, makeKeySlot, tryKeySlot, unlock } from './key-slots.ts';

/** The place of a LUKS header in a file: offsets from its start. */
export interface LuksPlace {
  read(offset: number, length: number): Promise<Uint8Array>;
  write(offset: number, bytes: Uint8Array): Promise<void>;
  sync(): Promise<void>;
}

/** A change of key slots; the rules are those of `qemu-img amend -o encrypt.*`. */
export interface KeySlotChange {
  /** `active` adds a passphrase, `inactive` takes one away. */
  readonly state: 'active' | 'inactive';
  /** The passphrase to add. */
  readonly newSecret?: Uint8Array | undefined;
  /** Take away all slots that this passphrase opens. */
  readonly oldSecret?: Uint8Array | undefined;
  /** Which slot, 0 to 7. Default: a free one; those of oldSecret. */
  readonly keyslot?: number | undefined;
  /** Erase the last key slot, too: nobody can open the image after that, whatever passphrase they have. Default false. */
  readonly force?: boolean | undefined;
  /** How long opening with the new passphrase shall take, milliseconds. Default 2000. */
  readonly iterTimeMs?: number | undefined;
}

/**
 * Changes key slots. A cut at any moment leaves every other slot as it was.
 *
 * @param secrets passphrases that open the image: to add another one
 * @returns the slots that changed
 * @throws {LunetteError} INVALID for a change that would make no sense or lose all data; ENCRYPTED when no passphrase fits
 */
export async function amendKeySlots(
  place: LuksPlace,
  header: LuksHeader,
  secrets: readonly Uint8Array[],
  change: KeySlotChange,
): Promise<number[]> {
  const { keyslot } = change;
  if (keyslot !== undefined && !(Number.isInteger(keyslot) && keyslot >= 0 && keyslot < KEY_SLOTS)) {
    throw new LunetteError('INVALID', `there is no key slot ${keyslot}: they are 0 to ${KEY_SLOTS - 1}`);
  }
  return change.state === 'active' ? [await add(place, header, secrets, change)] : erase(place, header, change);
}

async function add(
  place: LuksPlace,
  header: LuksHeader,
  secrets: readonly Uint8Array[],
  { newSecret, oldSecret, keyslot, iterTimeMs = 2000 }: KeySlotChange,
): Promise<number> {
  if (newSecret === undefined || newSecret.length === 0) {
    throw new LunetteError('INVALID', 'adding a key slot needs a new passphrase');
  }
  if (oldSecret !== undefined) throw new LunetteError('INVALID', 'a key slot that is added has no old passphrase');
  const index = keyslot ?? header.slots.findIndex(({ active }) => !active);
  if (index < 0) throw new LunetteError('LIMIT', `all ${KEY_SLOTS} key slots are in use`);
  const slot = header.slots[index] as KeySlot;
  if (slot.active) {
    throw new LunetteError('INVALID', `key slot ${index} is in use`, { help: 'Erase it first, or take another one.' });
  }
  for (const secret of secrets) {
    const opened = await unlock(header, place.read, secret);
    if (opened === undefined) continue;
    const made = await makeKeySlot(header, opened.key, newSecret, { materialOffset: slot.materialOffset, iterTimeMs });
    // The slot counts only once its key material is there.
    await place.write(slot.materialOffset, made.material);
    await place.sync();
    await putSlot(place, index, made.slot);
    return index;
  }
  throw new LunetteError('ENCRYPTED', 'no passphrase that was given opens the image');
}

async function erase(place: LuksPlace, header: LuksHeader, change: KeySlotChange): Promise<number[]> {
  const { newSecret, oldSecret, keyslot } = change;
  if (newSecret !== undefined) throw new LunetteError('INVALID', 'a key slot that is erased gets no new passphrase');
  if (keyslot === undefined && oldSecret === undefined) {
    throw new LunetteError('INVALID', 'erasing needs the number of a key slot, or the passphrase that opens it');
  }
  const slots: number[] = [];
  for (let index = 0; index < KEY_SLOTS; index++) {
    if (header.slots[index]?.active !== true || (keyslot !== undefined && keyslot !== index)) continue;
    if (oldSecret === undefined || (await tryKeySlot(header, place.read, oldSecret, index)) !== undefined) {
      slots.push(index);
    }
  }
  if (slots.length === 0) {
    const why =
      keyslot === undefined
        ? 'the passphrase opens no key slot'
        : header.slots[keyslot]?.active
          ? `the passphrase does not open key slot ${keyslot}`
          : `key slot ${keyslot} is not in use`;
    throw new LunetteError(oldSecret === undefined ? 'INVALID' : 'ENCRYPTED', why);
  }
  if (change.force !== true && slots.length === header.slots.filter(({ active }) => active).length) {
    throw new LunetteError('INVALID', 'without these key slots nobody could open the image any more', {
      help: 'Add another passphrase first. To destroy what the image holds: --force.',
    });
  }
  for (const index of slots) {
    const { materialOffset } = header.slots[index] as KeySlot;
    // The material first: a slot that says it is free must be of no use to anybody.
    await place.write(materialOffset, randomBytes(keyMaterialBytes(header.keyBytes)));
    await place.sync();
    await putSlot(place, index, emptyKeySlot(materialOffset));
  }
  return slots;
}

/** Writes a slot into the header: in whole sectors, the one that says whether it is in use last, or first when it is not. */
async function putSlot(place: LuksPlace, index: number, slot: KeySlot): Promise<void> {
  const bytes = await place.read(0, Math.ceil(HEADER_BYTES / SECTOR) * SECTOR);
  writeKeySlot(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), index, slot);
  const sectors = slot.active ? [SECTOR, 0] : [0, SECTOR];
  for (const at of sectors) {
    await place.write(at, bytes.subarray(at, at + SECTOR));
    await place.sync();
  }
}
