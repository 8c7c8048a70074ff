import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Secrets } from '../driver.ts';
import { EncryptedStorage } from '../luks/encrypted-storage.ts';
import { HEADER_BYTES, type LuksHeader, parseLuksHeader, STRIPES } from '../luks/header.ts';
import { unlock } from '../luks/key-slots.ts';
import { makeSectorCipher, type SectorCipher } from '../luks/sector-cipher.ts';
import type { Storage } from '../storage/storage.ts';
import type { Qcow2Header } from './header.ts';

export const CRYPT_NONE = 0;
/** AES-128-CBC by guest sectors, with the passphrase itself as key: the format's first, broken encryption. */
export const CRYPT_AES = 1;
export const CRYPT_LUKS = 2;

/** Bytes of the passphrase that legacy encryption takes. */
const AES_KEY_BYTES = 16;

/** How an image's data is read and written. */
export interface Payload {
  /** `dataStorage`, or what decrypts it. */
  readonly storage: Storage;
  /** Decrypts by guest sectors (legacy AES). */
  readonly guestCipher: SectorCipher | undefined;
}

/**
 * Opens the payload of an image.
 *
 * @param getSecrets gives the passphrases to try
 * @throws {ImageError} ENCRYPTED when none of the secrets fits; UNSUPPORTED, BAD_HEADER for what the encryption header says
 */
export async function openPayload(
  storage: Storage,
  dataStorage: Storage,
  header: Qcow2Header,
  getSecrets: Secrets | undefined,
): Promise<Payload> {
  const plain = { storage: dataStorage, guestCipher: undefined };
  if (header.cryptMethod === CRYPT_NONE) return plain;
  // What QEMU's encryption header says is checked before a passphrase is asked for: it may be one that we cannot use anyway.
  const luks = header.cryptMethod === CRYPT_LUKS ? await readLuksHeader(storage, header) : undefined;
  const secrets = (await getSecrets?.()) ?? [];
  if (secrets.length === 0) {
    throw new ImageError('ENCRYPTED', 'the image is encrypted, and no passphrase was given', {
      field: 'cryptMethod',
      offset: 32,
    });
  }
  if (luks === undefined) return { ...plain, guestCipher: legacyCipher(secrets[0] as Uint8Array) };
  for (const secret of secrets) {
    const opened = await unlock(luks, materialReader(storage, header), secret);
    if (opened === undefined) continue;
    return {
      storage: new EncryptedStorage(dataStorage, makeSectorCipher(luks.cipher, opened.key)),
      guestCipher: undefined,
    };
  }
  const which = secrets.length === 1 ? 'the passphrase does' : 'the passphrases do';
  throw new ImageError('ENCRYPTED', `the image is encrypted, and ${which} not open it`);
}

/** Reads and checks the LUKS header of an image. */
export async function readLuksHeader(storage: Storage, header: Qcow2Header): Promise<LuksHeader> {
  const { offset, length, at } = header.extensions.crypto ?? { offset: 0, length: 0, at: 0 };
  if (!Number.isSafeInteger(offset + length) || offset + Math.min(length, HEADER_BYTES) > storage.size) {
    throw new ImageError('TRUNCATED', 'the encryption header lies outside the file', { field: 'crypto', offset: at });
  }
  const bytes = new Uint8Array(Math.min(length, HEADER_BYTES));
  if (bytes.length > 0) await storage.readv(offset, IoVec.of(bytes));
  return parseLuksHeader(new DataView(bytes.buffer), { length, at: offset });
}

/** Reads key material of an image's LUKS header. */
export function materialReader(storage: Storage, header: Qcow2Header) {
  return async (offset: number, length: number): Promise<Uint8Array> => {
    const bytes = new Uint8Array(length);
    await storage.readv((header.extensions.crypto?.offset ?? 0) + offset, IoVec.of(bytes));
    return bytes;
  };
}

function legacyCipher(secret: Uint8Array): SectorCipher {
  const key = new Uint8Array(AES_KEY_BYTES);
  key.set(secret.subarray(0, AES_KEY_BYTES));
  return makeSectorCipher({ mode: 'cbc', bits: 128, iv: 'plain64', ivHash: undefined, modeText: 'cbc-plain64' }, key);
}

/** How an image is encrypted, in QEMU's words; no passphrase is needed. Of a header that is broken: what it should be. */
export async function describeEncryption(storage: Storage, header: Qcow2Header): Promise<Record<string, unknown>> {
  if (header.cryptMethod === CRYPT_AES) return { format: 'aes' };
  let luks: LuksHeader;
  try {
    luks = await readLuksHeader(storage, header);
  } catch (error) {
    if (error instanceof ImageError) return { format: 'luks' };
    throw error;
  }
  const { cipher } = luks;
  return {
    'ivgen-alg': cipher.iv,
    ...(cipher.ivHash === undefined ? {} : { 'ivgen-hash-alg': cipher.ivHash }),
    'hash-alg': luks.hash,
    'cipher-alg': `aes-${cipher.bits}`,
    uuid: luks.uuid,
    format: 'luks',
    'cipher-mode': cipher.mode,
    slots: luks.slots.map(({ active, iterations, materialOffset }) =>
      active
        ? { active, iters: iterations, 'key-offset': materialOffset, stripes: STRIPES }
        : { active, 'key-offset': materialOffset },
    ),
    'payload-offset': luks.payloadOffset,
    'master-key-iters': luks.digestIterations,
  };
}
