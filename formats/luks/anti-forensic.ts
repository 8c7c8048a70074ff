import { randomBytes } from 'node:crypto';
import { digestOf, digestSize } from './hash.ts';

/**
 * LUKS1's anti-forensic splitter: a key spread over many stripes, all of which are needed. Losing any of them loses the key.
 * Specification: "Anti-forensic information splitting".
 */
export function splitKey(key: Uint8Array, stripes: number, hash: string): Uint8Array {
  const size = key.length;
  const result = new Uint8Array(size * stripes);
  result.set(randomBytes(size * (stripes - 1)));
  const mixed = mix(result, size, stripes - 1, hash);
  for (let i = 0; i < size; i++) result[size * (stripes - 1) + i] = (mixed[i] as number) ^ (key[i] as number);
  return result;
}

/** The key that was split. */
export function mergeKey(split: Uint8Array, size: number, stripes: number, hash: string): Uint8Array {
  const mixed = mix(split, size, stripes - 1, hash);
  return mixed.map((byte, i) => byte ^ (split[size * (stripes - 1) + i] as number));
}

/** All stripes but the last, run together. */
function mix(split: Uint8Array, size: number, stripes: number, hash: string): Uint8Array {
  let block: Uint8Array = new Uint8Array(size);
  for (let stripe = 0; stripe < stripes; stripe++) {
    for (let i = 0; i < size; i++) block[i] = (block[i] as number) ^ (split[stripe * size + i] as number);
    block = diffuse(block, hash);
  }
  return block;
}

/** Every bit of a block on every bit of a digest's length: each piece is hashed with its number. */
function diffuse(block: Uint8Array, hash: string): Uint8Array {
  const result = new Uint8Array(block.length);
  const size = digestSize(hash);
  const number = new Uint8Array(4);
  for (let at = 0, i = 0; at < block.length; at += size, i++) {
    new DataView(number.buffer).setUint32(0, i);
    const piece = block.subarray(at, at + size);
    result.set(digestOf(hash, number, piece).subarray(0, piece.length), at);
  }
  return result;
}
