import { type Cipher, createCipheriv, createDecipheriv, type Decipher } from 'node:crypto';
import { endianness } from 'node:os';
import { ImageError } from '../core/errors.ts';
import type { CipherSpec } from './cipher-spec.ts';
import { digestOf } from './hash.ts';
import { SECTOR } from './header.ts';

const BLOCK = 16;
/** Sectors that go through the cipher in one call. */
const AT_ONCE = 128;

/**
 * Encrypts sectors of 512 bytes, each with its number. Both calls work in place, on whole sectors, in the tick of the call.
 */
export interface SectorCipher {
  /** @param sector number of the first one; the others follow it */
  encrypt(bytes: Uint8Array, sector: number): void;
  decrypt(bytes: Uint8Array, sector: number): void;
}

/**
 * AES over sectors. Node's ciphers take microseconds to set up, so none is made per sector: all blocks of many sectors go through plain AES
 * (ECB) in one call, and what the mode adds to them (XTS tweaks, CBC chaining) is done here.
 *
 * @param key the volume key: spec's length
 */
export function makeSectorCipher(spec: CipherSpec, key: Uint8Array): SectorCipher {
  if (endianness() !== 'LE') throw new ImageError('UNSUPPORTED', 'encrypted images need a little-endian machine');
  const vectors = new Vectors(spec, key);
  return spec.mode === 'xts' ? new XtsCipher(key, vectors) : new CbcCipher(key, vectors);
}

function aes(key: Uint8Array): Cipher {
  return createCipheriv(`aes-${key.length * 8}-ecb`, key, null).setAutoPadding(false);
}

function aesBack(key: Uint8Array): Decipher {
  return createDecipheriv(`aes-${key.length * 8}-ecb`, key, null).setAutoPadding(false);
}

/** Initialization vectors from sector numbers. */
class Vectors {
  readonly #bytes = new Uint8Array(AT_ONCE * BLOCK);
  readonly #words = new Uint32Array(this.#bytes.buffer);
  readonly #wide: boolean;
  readonly #essiv: Cipher | undefined;

  constructor(spec: CipherSpec, key: Uint8Array) {
    this.#wide = spec.iv !== 'plain';
    this.#essiv = spec.ivHash === undefined ? undefined : aes(digestOf(spec.ivHash, key));
  }

  /** The vectors of `count` sectors; to be used before the next call. */
  of(sector: number, count: number): Uint8Array {
    for (let i = 0; i < count; i++) {
      this.#words[i * 4] = (sector + i) % 0x100000000;
      this.#words[i * 4 + 1] = this.#wide ? Math.floor((sector + i) / 0x100000000) : 0;
    }
    const vectors = this.#bytes.subarray(0, count * BLOCK);
    return this.#essiv === undefined ? vectors : this.#essiv.update(vectors);
  }
}

/** IEEE 1619: each block is masked with its tweak before and after AES; a sector's first tweak is its encrypted vector. */
class XtsCipher implements SectorCipher {
  readonly #vectors: Vectors;
  readonly #tweakCipher: Cipher;
  readonly #forward: Cipher;
  readonly #back: Decipher;
  readonly #tweaks = new Uint32Array((AT_ONCE * SECTOR) / 4);
  readonly #masked = new Uint8Array(AT_ONCE * SECTOR);

  constructor(key: Uint8Array, vectors: Vectors) {
    const half = key.length / 2;
    this.#vectors = vectors;
    this.#tweakCipher = aes(key.subarray(half));
    this.#forward = aes(key.subarray(0, half));
    this.#back = aesBack(key.subarray(0, half));
  }

  encrypt(bytes: Uint8Array, sector: number): void {
    this.#apply(this.#forward, bytes, sector);
  }

  decrypt(bytes: Uint8Array, sector: number): void {
    this.#apply(this.#back, bytes, sector);
  }

  #apply(cipher: Cipher | Decipher, bytes: Uint8Array, first: number): void {
    for (let at = 0; at < bytes.length; at += AT_ONCE * SECTOR) {
      const part = bytes.subarray(at, at + AT_ONCE * SECTOR);
      this.#makeTweaks(first + at / SECTOR, part.length / SECTOR);
      this.#masked.set(part);
      const words = part.length / 4;
      mask(new Uint32Array(this.#masked.buffer, 0, words), this.#tweaks, words);
      const out = cipher.update(this.#masked.subarray(0, part.length));
      mask(new Uint32Array(out.buffer, out.byteOffset, words), this.#tweaks, words);
      part.set(out);
    }
  }

  /** The tweaks of all blocks: each is the one before it times x in GF(2^128). */
  #makeTweaks(sector: number, count: number): void {
    const starts = this.#tweakCipher.update(this.#vectors.of(sector, count));
    const view = new DataView(starts.buffer, starts.byteOffset, starts.length);
    const tweaks = this.#tweaks;
    let out = 0;
    for (let i = 0; i < count; i++) {
      let a = view.getInt32(i * BLOCK, true);
      let b = view.getInt32(i * BLOCK + 4, true);
      let c = view.getInt32(i * BLOCK + 8, true);
      let d = view.getInt32(i * BLOCK + 12, true);
      for (let block = 0; block < SECTOR / BLOCK; block++) {
        tweaks[out] = a;
        tweaks[out + 1] = b;
        tweaks[out + 2] = c;
        tweaks[out + 3] = d;
        out += 4;
        const carry = d >> 31;
        d = (d << 1) | (c >>> 31);
        c = (c << 1) | (b >>> 31);
        b = (b << 1) | (a >>> 31);
        a = (a << 1) ^ (carry & 0x87);
      }
    }
  }
}

/** Each block is masked with the encrypted one before it, the first of a sector with the vector. */
class CbcCipher implements SectorCipher {
  readonly #vectors: Vectors;
  readonly #forward: Cipher;
  readonly #back: Decipher;
  /** What the chain of #forward goes on with: the last block that it made. */
  #last: Uint8Array = new Uint8Array(BLOCK);

  constructor(key: Uint8Array, vectors: Vectors) {
    this.#vectors = vectors;
    this.#forward = createCipheriv(`aes-${key.length * 8}-cbc`, key, new Uint8Array(BLOCK)).setAutoPadding(false);
    this.#back = aesBack(key);
  }

  encrypt(bytes: Uint8Array, first: number): void {
    for (let at = 0; at < bytes.length; at += SECTOR) {
      const sector = bytes.subarray(at, at + SECTOR);
      const vector = this.#vectors.of(first + at / SECTOR, 1);
      // The cipher masks with the block before: taking that out again makes it begin anew.
      for (let i = 0; i < BLOCK; i++)
        sector[i] = (sector[i] as number) ^ (vector[i] as number) ^ (this.#last[i] as number);
      const out = this.#forward.update(sector);
      this.#last = out.subarray(SECTOR - BLOCK);
      sector.set(out);
    }
  }

  decrypt(bytes: Uint8Array, first: number): void {
    for (let at = 0; at < bytes.length; at += AT_ONCE * SECTOR) {
      const part = bytes.subarray(at, at + AT_ONCE * SECTOR);
      const out = this.#back.update(part);
      const vectors = this.#vectors.of(first + at / SECTOR, part.length / SECTOR);
      for (let i = 0; i < out.length; i++) {
        const within = i % SECTOR;
        const before = within < BLOCK ? vectors[Math.floor(i / SECTOR) * BLOCK + within] : part[i - BLOCK];
        out[i] = (out[i] as number) ^ (before as number);
      }
      part.set(out);
    }
  }
}

function mask(words: Uint32Array, tweaks: Uint32Array, count: number): void {
  for (let i = 0; i < count; i++) words[i] = (words[i] as number) ^ (tweaks[i] as number);
}
