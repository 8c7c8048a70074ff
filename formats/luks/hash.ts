import { createHash, getHashes } from 'node:crypto';

/** Digest sizes of the hashes that LUKS headers name, bytes. */
const DIGEST_SIZES: Readonly<Record<string, number>> = {
  md5: 16,
  sha1: 20,
  ripemd160: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
};

/** @returns the name @throws {Error} when there is no such hash here */
export function checkHash(name: string): string {
  if (DIGEST_SIZES[name] === undefined || !getHashes().includes(name)) {
    throw new Error(`hash ${JSON.stringify(name)} is not supported (${Object.keys(DIGEST_SIZES).join(', ')} are)`);
  }
  return name;
}

export function digestSize(name: string): number {
  return DIGEST_SIZES[name] as number;
}

export function digestOf(name: string, ...parts: Uint8Array[]): Uint8Array {
  const hash = createHash(name);
  for (const part of parts) hash.update(part);
  return hash.digest();
}
