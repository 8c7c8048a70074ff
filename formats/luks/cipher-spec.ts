import { digestSize } from './hash.ts';

/** How sectors are encrypted. */
export interface CipherSpec {
  readonly mode: 'xts' | 'cbc';
  /** AES key length, bits. XTS has two such keys. */
  readonly bits: 128 | 192 | 256;
  /** How a sector's number becomes an initialization vector. */
  readonly iv: 'plain' | 'plain64' | 'essiv';
  /** Of essiv: makes the key that encrypts sector numbers. */
  readonly ivHash: string | undefined;
  /** As in a LUKS header: `xts-plain64`, `cbc-essiv:sha256`. */
  readonly modeText: string;
}

/**
 * Reads a LUKS header's cipher name and mode.
 *
 * @param keyBytes of the whole key: two keys in XTS
 * @throws {Error} which names what is not supported
 */
export function parseCipher(name: string, modeText: string, keyBytes: number): CipherSpec {
  if (name !== 'aes') throw new Error(`cipher ${JSON.stringify(name)} is not supported, only aes`);
  const match = /^(xts|cbc)-(plain|plain64|essiv)(?::([a-z0-9]+))?$/.exec(modeText);
  if (match === null) {
    throw new Error(
      `cipher mode ${JSON.stringify(modeText)} is not supported (xts and cbc with plain64, plain, essiv are)`,
    );
  }
  const mode = match[1] as CipherSpec['mode'];
  const iv = match[2] as CipherSpec['iv'];
  const ivHash = match[3];
  if ((iv === 'essiv') !== (ivHash !== undefined))
    throw new Error(`cipher mode ${JSON.stringify(modeText)} is not valid`);
  // The digest is an AES key.
  if (ivHash !== undefined && ![16, 24, 32].includes(digestSize(ivHash) ?? 0)) {
    throw new Error(`essiv with ${ivHash} is not supported, only with sha256`);
  }
  const bits = (mode === 'xts' ? keyBytes / 2 : keyBytes) * 8;
  if (bits !== 128 && bits !== 256 && !(bits === 192 && mode === 'cbc')) {
    throw new Error(`a key of ${keyBytes} bytes is not supported for aes-${mode}`);
  }
  return { mode, bits, iv, ivHash, modeText };
}

/** Bytes of the whole key. */
export function keyLength(spec: Pick<CipherSpec, 'mode' | 'bits'>): number {
  return (spec.bits / 8) * (spec.mode === 'xts' ? 2 : 1);
}
