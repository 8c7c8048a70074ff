import { LunetteError } from '../core/errors.ts';
import { type CipherSpec, keyLength, parseCipher } from './cipher-spec.ts';
import { checkHash } from './hash.ts';
import { encodeLuksHeader } from './header.ts';
import { layoutFor, makeKeySlot, newLuksHeader } from './key-slots.ts';

/** How a new image is encrypted. Names and defaults are those of `qemu-img create -o encrypt.*`. */
export interface LuksOptions {
  /** The passphrase of the first key slot, as bytes. */
  readonly secret: Uint8Array;
  /** `aes-128`, `aes-192` (cbc only) or `aes-256`. Default aes-256. */
  readonly cipherAlg?: string | undefined;
  /** `xts` or `cbc`. Default xts. */
  readonly cipherMode?: string | undefined;
  /** `plain64`, `plain` or `essiv`. Default plain64. */
  readonly ivgenAlg?: string | undefined;
  /** Of essiv. Default sha256. */
  readonly ivgenHashAlg?: string | undefined;
  /** Of PBKDF2 and the key splitter. Default sha256. */
  readonly hashAlg?: string | undefined;
  /** How long opening shall take on a machine like this one, milliseconds. Default 2000. */
  readonly iterTimeMs?: number | undefined;
}

const DEFAULT_ITER_TIME_MS = 2000;

/** A new encrypted volume: its header with key material, and its key. */
export interface LuksVolume {
  readonly cipher: CipherSpec;
  readonly key: Uint8Array;
  /** Everything in front of the payload. */
  readonly bytes: Uint8Array;
}

/** What the options ask for. @throws {LunetteError} INVALID, UNSUPPORTED naming what there is not */
export function checkLuksOptions(options: Omit<LuksOptions, 'secret'>): { cipher: CipherSpec; hash: string } {
  const { cipherAlg = 'aes-256', cipherMode = 'xts', ivgenAlg = 'plain64', ivgenHashAlg, hashAlg = 'sha256' } = options;
  const match = /^(.+)-(\d+)$/.exec(cipherAlg);
  const bits = Number(match?.[2]);
  const mode = cipherMode === 'xts' || cipherMode === 'cbc' ? cipherMode : 'cbc';
  const ivHash = ivgenAlg === 'essiv' ? `:${ivgenHashAlg ?? 'sha256'}` : '';
  if (ivgenAlg !== 'essiv' && ivgenHashAlg !== undefined) {
    throw new LunetteError('INVALID', `encrypt.ivgen-hash-alg is of encrypt.ivgen-alg=essiv, not of ${ivgenAlg}`);
  }
  try {
    const keyBytes = keyLength({ mode, bits: bits as CipherSpec['bits'] });
    return {
      cipher: parseCipher(match?.[1] ?? cipherAlg, `${cipherMode}-${ivgenAlg}${ivHash}`, keyBytes),
      hash: checkHash(hashAlg),
    };
  } catch (error) {
    throw new LunetteError('UNSUPPORTED', `encryption: ${(error as Error).message}`);
  }
}

/** Bytes in front of the payload of a new volume. @throws {LunetteError} as checkLuksOptions */
export function luksHeaderBytes(options: Omit<LuksOptions, 'secret'>): number {
  return layoutFor(keyLength(checkLuksOptions(options).cipher)).payloadOffset;
}

/** Makes a volume with a new key, which the passphrase opens. Takes `iterTimeMs` and more, off the event loop. */
export async function makeLuksVolume(options: LuksOptions): Promise<LuksVolume> {
  const { secret, iterTimeMs = DEFAULT_ITER_TIME_MS } = options;
  if (secret.length === 0) throw new LunetteError('INVALID', 'the passphrase is empty');
  const { cipher, hash } = checkLuksOptions(options);
  const { header, key } = await newLuksHeader({ cipher, hash, iterTimeMs });
  const materialOffset = (header.slots[0] as { materialOffset: number }).materialOffset;
  const { slot, material } = await makeKeySlot(header, key, secret, { materialOffset, iterTimeMs });
  const bytes = new Uint8Array(header.payloadOffset);
  bytes.set(encodeLuksHeader({ ...header, slots: [slot, ...header.slots.slice(1)] }));
  bytes.set(material, materialOffset);
  return { cipher, key, bytes };
}
