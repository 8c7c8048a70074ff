import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';

/** A file in an archive: where its bytes are. */
export interface TarMember {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
}

const BLOCK = 512;
const MAX_MEMBERS = 4096;
/** Longest extended header or long name that is read. */
const MAX_EXTENDED = 64 * 1024;

/** Whether the first bytes are those of a POSIX or GNU tar archive. */
export function isTar(head: Uint8Array): boolean {
  return head.length >= BLOCK && Buffer.from(head.subarray(257, 262)).toString('latin1') === 'ustar';
}

/** Name of the first member, from the first block. */
export function firstName(head: Uint8Array): string {
  return textField(head, 0, 100);
}

/**
 * Lists the plain files of a tar archive (POSIX ustar with pax headers, GNU), reading headers only.
 *
 * @throws {ImageError} BAD_MAGIC, CORRUPT, TRUNCATED, TOO_LARGE
 */
export async function listTar(storage: Storage): Promise<TarMember[]> {
  const members: TarMember[] = [];
  const fail = (code: 'BAD_MAGIC' | 'CORRUPT' | 'TRUNCATED' | 'TOO_LARGE', why: string, offset: number): never => {
    throw new ImageError(code, why, { path: storage.path, offset });
  };
  let extended = new Map<string, string>();
  const block = new Uint8Array(BLOCK);
  let headers = 0;
  for (let at = 0; at + BLOCK <= storage.size; ) {
    await storage.readv(at, IoVec.of(block));
    if (block.every((byte) => byte === 0)) break;
    if (!isTar(block)) fail(at === 0 ? 'BAD_MAGIC' : 'CORRUPT', 'is no tar header', at);
    if (!hasRightSum(block)) fail('CORRUPT', 'the checksum of a tar header is wrong', at);
    if (++headers > 4 * MAX_MEMBERS) fail('TOO_LARGE', 'the archive has too many members', at);
    const type = String.fromCharCode(block[156] as number);
    const size = extended.has('size') && isPlain(type) ? Number(extended.get('size')) : numberField(block, 124, 12);
    const start = at + BLOCK;
    if (!Number.isSafeInteger(size) || size < 0) fail('CORRUPT', 'the size of a member is no number', at);
    if (start + size > storage.size) fail('TRUNCATED', 'a member ends past the end of the archive', at);
    if (type === 'x' || type === 'L') {
      if (size > MAX_EXTENDED) fail('TOO_LARGE', 'an extended header is too long', at);
      const bytes = new Uint8Array(size);
      await storage.readv(start, IoVec.of(bytes));
      if (type === 'x') extended = new Map([...extended, ...paxRecords(bytes)]);
      else extended.set('path', textField(bytes, 0, bytes.length));
    } else {
      if (isPlain(type)) {
        const prefix = textField(block, 345, 155);
        const name = extended.get('path') ?? `${prefix === '' ? '' : `${prefix}/`}${textField(block, 0, 100)}`;
        members.push({ name, offset: start, size });
        if (members.length > MAX_MEMBERS) fail('TOO_LARGE', 'the archive has too many members', at);
      }
      // A global header ('g') says nothing of sizes and names here.
      if (type !== 'g') extended = new Map();
    }
    at = start + alignUp(size, BLOCK);
  }
  return members;
}

function isPlain(type: string): boolean {
  return type === '0' || type === '\0' || type === '7';
}

function textField(block: Uint8Array, at: number, length: number): string {
  const field = block.subarray(at, at + length);
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString('utf8');
}

/** Octal digits, or with the top bit set a binary number (GNU, for sizes of 8 GiB and more). NaN when it is neither. */
function numberField(block: Uint8Array, at: number, length: number): number {
  const first = block[at] as number;
  if ((first & 0x80) !== 0) {
    let value = first & 0x7f;
    for (let i = at + 1; i < at + length; i++) value = value * 256 + (block[i] as number);
    return value;
  }
  const text = textField(block, at, length).trim();
  return /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : text === '' ? 0 : Number.NaN;
}

/** The sum of all bytes, with the field of the sum itself counted as blanks. */
function hasRightSum(block: Uint8Array): boolean {
  let sum = 8 * 0x20;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += block[i] as number;
  return numberField(block, 148, 8) === sum;
}

/** Records `LENGTH key=value\n`. */
function paxRecords(bytes: Uint8Array): Map<string, string> {
  const records = new Map<string, string>();
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 ? 0 : Number(Buffer.from(bytes.subarray(at, space)).toString('latin1'));
    if (!Number.isInteger(length) || length <= space - at + 1 || at + length > bytes.length) break;
    const record = Buffer.from(bytes.subarray(space + 1, at + length - 1)).toString('utf8');
    const equals = record.indexOf('=');
    if (equals > 0) records.set(record.slice(0, equals), record.slice(equals + 1));
    at += length;
  }
  return records;
}
