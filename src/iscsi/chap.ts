import { createHash, getHashes, randomBytes, timingSafeEqual } from 'node:crypto';
import { UsageError } from '../../formats/core/errors.ts';
import { encodeBinary, parseBinary, parseNumber, type TextPair } from './text.ts';

/** Name and secret of one direction of CHAP. */
export interface ChapCredentials {
  readonly user: string;
  /** At least 12 bytes; Windows takes 12 to 16. */
  readonly secret: string;
}

/** CHAP_A numbers (IANA "PPP Authentication Algorithms") and Node's names of the hashes. */
export const CHAP_ALGORITHMS: ReadonlyMap<number, { readonly hash: string; readonly length: number }> = new Map([
  [5, { hash: 'md5', length: 16 }],
  [6, { hash: 'sha1', length: 20 }],
  [7, { hash: 'sha256', length: 32 }],
  [8, { hash: 'sha3-256', length: 32 }],
]);

/** All that this Node's OpenSSL has (a FIPS build lacks MD5). */
export const DEFAULT_ALGORITHMS: readonly number[] = [...CHAP_ALGORITHMS]
  .filter(([, { hash }]) => getHashes().includes(hash))
  .map(([number]) => number);

/** Longest challenge that the RFC allows, bytes. */
const MAX_CHALLENGE = 1024;
const MIN_SECRET = 12;

/** Checks credentials at configuration time. @throws {UsageError} INVALID */
export function checkCredentials(credentials: ChapCredentials, whose: string): void {
  if (credentials.user === '' || Buffer.byteLength(credentials.user) > 255) {
    throw new UsageError('INVALID', `${whose}: the CHAP user name must be 1 to 255 bytes long`);
  }
  if (Buffer.byteLength(credentials.secret) < MIN_SECRET) {
    throw new UsageError('INVALID', `${whose}: the CHAP secret is shorter than ${MIN_SECRET} bytes`, {
      help: 'RFC 7143 asks for 96 random bits at least; Windows takes 12 to 16 bytes',
    });
  }
}

/** CHAP_R: hash of identifier, secret and challenge (RFC 1994). */
export function chapResponse(algorithm: number, identifier: number, secret: string, challenge: Uint8Array): Uint8Array {
  const { hash } = CHAP_ALGORITHMS.get(algorithm) as { hash: string };
  return createHash(hash)
    .update(Uint8Array.of(identifier & 0xff))
    .update(secret, 'utf8')
    .update(challenge)
    .digest();
}

/** What to send next: pairs; or that the initiator failed, and why. */
export type ChapStep = { readonly reply: TextPair[]; readonly done: boolean } | { readonly failed: string };

export interface ChapOptions {
  /** What the initiator must prove. */
  readonly credentials: ChapCredentials;
  /** What we prove when it asks. */
  readonly mutual?: ChapCredentials | undefined;
  /** Algorithms that policy allows. */
  readonly algorithms?: readonly number[] | undefined;
  /** Random bytes: replaced in tests. */
  readonly random?: (length: number) => Uint8Array;
}

/** The target's side of CHAP in one login (RFC 7143 section 12.1.3). */
export class Chap {
  #state: 'algorithm' | 'response' | 'over' = 'algorithm';
  readonly #options: ChapOptions;
  #algorithm = 0;
  #identifier = 0;
  #challenge: Uint8Array = new Uint8Array(0);

  constructor(options: ChapOptions) {
    this.#options = options;
  }

  /** Takes the CHAP_ keys of one request. */
  step(keys: ReadonlyMap<string, string>): ChapStep {
    switch (this.#state) {
      case 'algorithm':
        return this.#offer(keys);
      case 'response':
        return this.#verify(keys);
      default:
        return { failed: 'CHAP goes on after its end' };
    }
  }

  #offer(keys: ReadonlyMap<string, string>): ChapStep {
    const list = keys.get('CHAP_A');
    if (list === undefined) return { failed: 'no CHAP_A' };
    const allowed = this.#options.algorithms ?? DEFAULT_ALGORITHMS;
    const choice = list
      .split(',')
      .map(parseNumber)
      .find((n) => n !== undefined && allowed.includes(n) && DEFAULT_ALGORITHMS.includes(n));
    if (choice === undefined) return { failed: `no common CHAP algorithm in ${list.slice(0, 40)}` };
    const random = this.#options.random ?? randomBytes;
    this.#algorithm = choice;
    this.#identifier = random(1)[0] as number;
    this.#challenge = random(Math.max(16, CHAP_ALGORITHMS.get(choice)?.length ?? 0));
    this.#state = 'response';
    const reply: TextPair[] = [
      ['CHAP_A', String(choice)],
      ['CHAP_I', String(this.#identifier)],
      ['CHAP_C', encodeBinary(this.#challenge)],
    ];
    return { reply, done: false };
  }

  #verify(keys: ReadonlyMap<string, string>): ChapStep {
    this.#state = 'over';
    const name = keys.get('CHAP_N');
    const text = keys.get('CHAP_R');
    if (name === undefined || text === undefined) return { failed: 'no CHAP_N or CHAP_R' };
    const { credentials, mutual } = this.#options;
    const response = parseBinary(text, MAX_CHALLENGE);
    const expected = chapResponse(this.#algorithm, this.#identifier, credentials.secret, this.#challenge);
    // Both are compared, whatever the first gives: the time tells nothing about which was wrong.
    const nameGood = sameBytes(Buffer.from(name, 'utf8'), Buffer.from(credentials.user, 'utf8'));
    const responseGood = response !== undefined && sameBytes(response, expected);
    if (!nameGood || !responseGood) return { failed: 'wrong CHAP name or response' };

    const identifierText = keys.get('CHAP_I');
    const challengeText = keys.get('CHAP_C');
    if (identifierText === undefined && challengeText === undefined) return { reply: [], done: true };
    const identifier = parseNumber(identifierText ?? '');
    const challenge = parseBinary(challengeText ?? '', MAX_CHALLENGE);
    if (identifier === undefined || identifier > 255 || challenge === undefined) {
      return { failed: 'malformed CHAP_I or CHAP_C' };
    }
    if (mutual === undefined) return { failed: 'the initiator wants mutual CHAP, which is not configured' };
    // An initiator that sends our own challenge back wants us to compute the answer it owes.
    if (sameBytes(challenge, this.#challenge)) return { failed: 'the initiator reflects our challenge' };
    const reply: TextPair[] = [
      ['CHAP_N', mutual.user],
      ['CHAP_R', encodeBinary(chapResponse(this.#algorithm, identifier, mutual.secret, challenge))],
    ];
    return { reply, done: true };
  }
}

/** Equality in constant time for equal lengths; lengths are no secret. */
function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && timingSafeEqual(a, b);
}
