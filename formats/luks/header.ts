import { type ErrorCode, ImageError } from '../core/errors.ts';
import { bytes, Struct, u16, u32 } from '../core/struct.ts';
import { hex } from '../core/units.ts';
import { type CipherSpec, parseCipher } from './cipher-spec.ts';
import { checkHash } from './hash.ts';

/** Key material, and the sectors that offsets count. */
export const SECTOR = 512;
export const KEY_SLOTS = 8;
/** Parts that a key is split into: the only number that LUKS1 programs write. */
export const STRIPES = 4000;
export const DIGEST_BYTES = 20;
export const SALT_BYTES = 32;
/** Rounds of PBKDF2 that are worth waiting for: minutes on any machine. More is refused before it is begun. */
export const MAX_ITERATIONS = 2 ** 27;

const MAGIC = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe];
const ENABLED = 0x00ac71f3;
const DISABLED = 0x0000dead;
const SLOT_BYTES = 48;
const SLOTS_AT = 208;
export const HEADER_BYTES = SLOTS_AT + KEY_SLOTS * SLOT_BYTES;

/** LUKS1 On-Disk Format Specification, section "LUKS Partition Header". */
export const LUKS_HEADER = new Struct(
  'LUKS header',
  { size: SLOTS_AT, endian: 'big' },
  {
    magic: bytes(0, 6),
    version: u16(6),
    cipherName: bytes(8, 32),
    cipherMode: bytes(40, 32),
    hashSpec: bytes(72, 32),
    payloadOffset: u32(104),
    keyBytes: u32(108),
    digest: bytes(112, DIGEST_BYTES),
    digestSalt: bytes(132, SALT_BYTES),
    digestIterations: u32(164),
    uuid: bytes(168, 40),
  },
);

const SLOT = new Struct(
  'LUKS key slot',
  { size: SLOT_BYTES, endian: 'big' },
  { state: u32(0), iterations: u32(4), salt: bytes(8, SALT_BYTES), materialOffset: u32(40), stripes: u32(44) },
);

export interface KeySlot {
  readonly active: boolean;
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Where its key material is, bytes from the header's start. */
  readonly materialOffset: number;
}

/** A header that was checked. Offsets in bytes from its own start. */
export interface LuksHeader {
  readonly cipher: CipherSpec;
  readonly hash: string;
  readonly payloadOffset: number;
  readonly keyBytes: number;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  readonly slots: readonly KeySlot[];
}

/**
 * Decodes and checks a LUKS1 header.
 *
 * @param view from the header's start
 * @param options.length bytes that header and key material may take
 * @param options.at where the header is in the file: for errors
 * @throws {ImageError} BAD_MAGIC, BAD_HEADER, UNSUPPORTED, TRUNCATED with field and offset
 */
export function parseLuksHeader(view: DataView, options: { length: number; at: number }): LuksHeader {
  const { length, at } = options;
  const fail = (code: ErrorCode, field: string, where: number, why: string): never => {
    throw new ImageError(code, `LUKS header: ${why}`, { field, offset: at + where });
  };
  if (view.byteLength < HEADER_BYTES || length < HEADER_BYTES) fail('TRUNCATED', 'magic', 0, 'it is cut short');
  const raw = LUKS_HEADER.read(view);
  const { fields } = LUKS_HEADER;
  if (MAGIC.some((byte, i) => raw.magic[i] !== byte)) fail('BAD_MAGIC', 'magic', 0, 'it does not begin with LUKS');
  if (raw.version !== 1) {
    fail(
      'UNSUPPORTED',
      'version',
      fields.version.at,
      `version ${raw.version} (with argon2id) is not supported, only LUKS1`,
    );
  }
  const known = <T>(field: 'cipherName' | 'hashSpec', parse: () => T): T => {
    try {
      return parse();
    } catch (error) {
      return fail('UNSUPPORTED', field, fields[field].at, (error as Error).message);
    }
  };
  const cipher = known('cipherName', () => parseCipher(text(raw.cipherName), text(raw.cipherMode), raw.keyBytes));
  const hash = known('hashSpec', () => checkHash(text(raw.hashSpec)));
  if (raw.digestIterations === 0 || raw.digestIterations > MAX_ITERATIONS) {
    fail('BAD_HEADER', 'digestIterations', fields.digestIterations.at, `${raw.digestIterations} iterations`);
  }
  const slots: KeySlot[] = [];
  const material = keyMaterialBytes(raw.keyBytes);
  const taken = [{ from: 0, to: HEADER_BYTES }];
  for (let i = 0; i < KEY_SLOTS; i++) {
    const slotAt = SLOTS_AT + i * SLOT_BYTES;
    const slot = SLOT.read(view, slotAt);
    const bad = (field: 'state' | 'iterations' | 'materialOffset' | 'stripes', why: string) =>
      fail('BAD_HEADER', `keySlots[${i}].${field}`, slotAt + SLOT.fields[field].at, `key slot ${i}: ${why}`);
    if (slot.state !== ENABLED && slot.state !== DISABLED) bad('state', `state ${hex(slot.state)} is not known`);
    if (slot.stripes !== STRIPES) bad('stripes', `${slot.stripes} stripes instead of ${STRIPES}`);
    const active = slot.state === ENABLED;
    if (active && (slot.iterations === 0 || slot.iterations > MAX_ITERATIONS)) {
      bad('iterations', `${slot.iterations} iterations are ${slot.iterations === 0 ? 'no protection' : 'too many'}`);
    }
    const from = slot.materialOffset * SECTOR;
    const to = from + material;
    if (to > length) bad('materialOffset', 'its key material is outside the encryption header');
    if (taken.some((other) => from < other.to && other.from < to)) {
      bad('materialOffset', 'its key material lies on something else');
    }
    taken.push({ from, to });
    slots.push({ active, iterations: slot.iterations, salt: slot.salt, materialOffset: from });
  }
  return {
    cipher,
    hash,
    payloadOffset: raw.payloadOffset * SECTOR,
    keyBytes: raw.keyBytes,
    digest: raw.digest,
    digestSalt: raw.digestSalt,
    digestIterations: raw.digestIterations,
    uuid: text(raw.uuid),
    slots,
  };
}

/** The header's bytes. */
export function encodeLuksHeader(header: LuksHeader): Uint8Array {
  const result = new Uint8Array(HEADER_BYTES);
  const view = new DataView(result.buffer);
  LUKS_HEADER.write(view, {
    magic: Uint8Array.from(MAGIC),
    version: 1,
    cipherName: padded('aes', 32),
    cipherMode: padded(header.cipher.modeText, 32),
    hashSpec: padded(header.hash, 32),
    payloadOffset: header.payloadOffset / SECTOR,
    keyBytes: header.keyBytes,
    digest: header.digest,
    digestSalt: header.digestSalt,
    digestIterations: header.digestIterations,
    uuid: padded(header.uuid, 40),
  });
  header.slots.forEach((slot, i) => {
    writeKeySlot(view, i, slot);
  });
  return result;
}

/** Writes one key slot in place. */
export function writeKeySlot(view: DataView, index: number, slot: KeySlot): void {
  SLOT.write(
    view,
    {
      state: slot.active ? ENABLED : DISABLED,
      iterations: slot.iterations,
      salt: slot.salt,
      materialOffset: slot.materialOffset / SECTOR,
      stripes: STRIPES,
    },
    SLOTS_AT + index * SLOT_BYTES,
  );
}

/** Bytes of a slot's key material: the split key, in whole sectors. */
export function keyMaterialBytes(keyBytes: number): number {
  return Math.ceil((keyBytes * STRIPES) / SECTOR) * SECTOR;
}

function text(field: Uint8Array): string {
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString('latin1');
}

function padded(value: string, length: number): Uint8Array {
  const result = new Uint8Array(length);
  result.set(Buffer.from(value, 'latin1').subarray(0, length - 1));
  return result;
}
