import { pbkdf2, type pbkdf2Sync, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import { LunetteError } from '../core/errors.ts';
import { promisifyLater } from '../core/promisify-later.ts';
import { alignUp, KiB } from '../core/units.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';
import { type CipherSpec, keyLength } from './cipher-spec.ts';
import { digestSize } from './hash.ts';
import {
  DIGEST_BYTES,
  KEY_SLOTS,
  type KeySlot,
  keyMaterialBytes,
  type LuksHeader,
  MAX_ITERATIONS,
  SALT_BYTES,
  STRIPES,
} from './header.ts';
import { makeSectorCipher } from './sector-cipher.ts';

const derive = promisifyLater<Parameters<typeof pbkdf2Sync>, Buffer>(() => pbkdf2);

/** Key material and payload lie at multiples of it. */
const ALIGNMENT = 4 * KiB;
/** Fewest rounds that a new slot gets, however slow the machine. */
const MIN_ITERATIONS = 1000;
const PROBE_ITERATIONS = 2 ** 14;
/** The digest only tells right keys from wrong ones: an eighth of the time is enough. */
const DIGEST_SHARE = 8;

/** Reads key material: bytes from the LUKS header's start. */
export type ReadMaterial = (offset: number, length: number) => Promise<Uint8Array>;

/** A key slot that a passphrase opens. */
export interface Unlocked {
  readonly slot: number;
  readonly key: Uint8Array;
}

/**
 * Finds the volume key that a passphrase opens. Takes seconds by design, off the event loop.
 *
 * @returns undefined when it opens no slot
 */
export async function unlock(
  header: LuksHeader,
  read: ReadMaterial,
  passphrase: Uint8Array,
): Promise<Unlocked | undefined> {
  for (let slot = 0; slot < KEY_SLOTS; slot++) {
    const key = await tryKeySlot(header, read, passphrase, slot);
    if (key !== undefined) return { slot, key };
  }
  return undefined;
}

/** The volume key when the passphrase opens this slot. */
export async function tryKeySlot(
  header: LuksHeader,
  read: ReadMaterial,
  passphrase: Uint8Array,
  index: number,
): Promise<Uint8Array | undefined> {
  const slot = header.slots[index];
  if (slot === undefined || !slot.active) return undefined;
  const material = await read(slot.materialOffset, keyMaterialBytes(header.keyBytes));
  const slotKey = await derive(passphrase, slot.salt, slot.iterations, header.keyBytes, header.hash);
  makeSectorCipher(header.cipher, slotKey).decrypt(material, 0);
  const key = mergeKey(material.subarray(0, header.keyBytes * STRIPES), header.keyBytes, STRIPES, header.hash);
  const digest = await derive(key, header.digestSalt, header.digestIterations, DIGEST_BYTES, header.hash);
  return timingSafeEqual(digest, header.digest) ? key : undefined;
}

/** A slot that a passphrase opens, and its key material to be written before the slot. */
export async function makeKeySlot(
  header: Pick<LuksHeader, 'cipher' | 'hash' | 'keyBytes'>,
  key: Uint8Array,
  passphrase: Uint8Array,
  options: { materialOffset: number; iterTimeMs: number },
): Promise<{ slot: KeySlot; material: Uint8Array }> {
  const iterations = await iterationsFor(header.hash, header.keyBytes, options.iterTimeMs);
  const salt = randomBytes(SALT_BYTES);
  const slotKey = await derive(passphrase, salt, iterations, header.keyBytes, header.hash);
  const material = new Uint8Array(keyMaterialBytes(header.keyBytes));
  material.set(splitKey(key, STRIPES, header.hash));
  makeSectorCipher(header.cipher, slotKey).encrypt(material, 0);
  return { slot: { active: true, iterations, salt, materialOffset: options.materialOffset }, material };
}

/** A slot without a key. */
export function emptyKeySlot(materialOffset: number): KeySlot {
  return { active: false, iterations: 0, salt: new Uint8Array(SALT_BYTES), materialOffset };
}

/** Where key material and payload of a new volume lie. */
export function layoutFor(keyBytes: number): { materialOffsets: readonly number[]; payloadOffset: number } {
  const stride = alignUp(keyMaterialBytes(keyBytes), ALIGNMENT);
  const materialOffsets = Array.from({ length: KEY_SLOTS }, (_, i) => ALIGNMENT + i * stride);
  return { materialOffsets, payloadOffset: ALIGNMENT + KEY_SLOTS * stride };
}

/** A header without slots in use, around a new volume key. */
export async function newLuksHeader(options: {
  cipher: CipherSpec;
  hash: string;
  iterTimeMs: number;
}): Promise<{ header: LuksHeader; key: Uint8Array }> {
  const { cipher, hash, iterTimeMs } = options;
  const keyBytes = keyLength(cipher);
  const key = new Uint8Array(randomBytes(keyBytes));
  const digestSalt = randomBytes(SALT_BYTES);
  const digestIterations = await iterationsFor(hash, DIGEST_BYTES, iterTimeMs / DIGEST_SHARE);
  const digest = await derive(key, digestSalt, digestIterations, DIGEST_BYTES, hash);
  const { materialOffsets, payloadOffset } = layoutFor(keyBytes);
  const slots = materialOffsets.map(emptyKeySlot);
  const uuid = randomUUID();
  return { header: { cipher, hash, payloadOffset, keyBytes, digest, digestSalt, digestIterations, uuid, slots }, key };
}

/** Rounds that take about that long here, for a result of so many bytes. */
async function iterationsFor(hash: string, length: number, timeMs: number): Promise<number> {
  if (!(timeMs > 0)) throw new LunetteError('INVALID', `${timeMs} ms are no time to derive keys in`);
  const salt = new Uint8Array(SALT_BYTES);
  const blocks = Math.ceil(length / digestSize(hash));
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 3; i++) {
    const from = process.hrtime.bigint();
    await derive(salt, salt, PROBE_ITERATIONS, digestSize(hash), hash);
    best = Math.min(best, Number(process.hrtime.bigint() - from) / 1e6);
  }
  const rounds = Math.floor((PROBE_ITERATIONS * timeMs) / (best * blocks));
  return Math.min(MAX_ITERATIONS, Math.max(MIN_ITERATIONS, rounds));
}
