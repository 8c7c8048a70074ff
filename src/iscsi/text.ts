import { ProtocolError } from '../../formats/core/errors.ts';

/** One `key=value` of login or text negotiation (RFC 7143 section 6.1). */
export type TextPair = readonly [key: string, value: string];

/** Longest key name that the RFC allows, bytes. */
export const MAX_KEY_LENGTH = 63;
/** Longest value: a 1024-byte binary item in hexadecimal, and some air for lists. */
export const MAX_VALUE_LENGTH = 8192;

const KEY = /^[A-Za-z][A-Za-z0-9.\-+@_#]*$/;
const decoder = new TextDecoder('utf-8', { fatal: true });

/**
 * Decodes the data segment (or the joined segments) of a login or text request: pairs that end with a NUL each.
 *
 * @throws {ProtocolError} PROTOCOL for what is no such list
 */
export function parseText(bytes: Uint8Array): TextPair[] {
  if (bytes.length === 0) return [];
  if (bytes[bytes.length - 1] !== 0) throw new ProtocolError('PROTOCOL', 'text does not end with NUL');
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch (cause) {
    throw new ProtocolError('PROTOCOL', 'text is not UTF-8', { cause });
  }
  const pairs: TextPair[] = [];
  for (const item of text.split('\0')) {
    if (item === '') continue; // the end, or padding that was counted in
    const equals = item.indexOf('=');
    if (equals < 0) throw new ProtocolError('PROTOCOL', 'text item without "="');
    const key = item.slice(0, equals);
    const value = item.slice(equals + 1);
    if (key.length > MAX_KEY_LENGTH || !KEY.test(key)) throw new ProtocolError('PROTOCOL', 'text key is malformed');
    if (value.length > MAX_VALUE_LENGTH) throw new ProtocolError('PROTOCOL', `value of ${key} is too long`);
    pairs.push([key, value]);
  }
  return pairs;
}

/** Encodes pairs as they go into a data segment. */
export function encodeText(pairs: readonly TextPair[]): Uint8Array {
  return Buffer.from(pairs.map(([key, value]) => `${key}=${value}\0`).join(''), 'utf8');
}

/** A numerical value: decimal or 0x hexadecimal. Undefined when it is none, or above 2^32 - 1. */
export function parseNumber(value: string): number | undefined {
  if (!/^(?:0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})$/.test(value)) return undefined;
  const number = Number(value);
  return number <= 0xffffffff ? number : undefined;
}

/** A binary value: `0x` and hexadecimal digits, or `0b` and base64. Undefined when it is neither, empty, or longer than `limit` bytes. */
export function parseBinary(value: string, limit: number): Uint8Array | undefined {
  const digits = value.slice(2);
  if (/^0[xX]/.test(value)) {
    // An odd number of digits: the first one stands alone.
    const even = digits.length % 2 === 0 ? digits : `0${digits}`;
    if (even.length === 0 || even.length > limit * 2 || !/^[0-9a-fA-F]*$/.test(even)) return undefined;
    return Buffer.from(even, 'hex');
  }
  if (/^0[bB]/.test(value)) {
    if (digits.length === 0 || digits.length > Math.ceil(limit / 3) * 4) return undefined;
    if (digits.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(digits)) return undefined;
    const bytes = Buffer.from(digits, 'base64');
    return bytes.length === 0 || bytes.length > limit ? undefined : bytes;
  }
  return undefined;
}

/** Writes a binary value in hexadecimal, which every initiator reads. */
export function encodeBinary(bytes: Uint8Array): string {
  return `0x${Buffer.from(bytes).toString('hex')}`;
}
