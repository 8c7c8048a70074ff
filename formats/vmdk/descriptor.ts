import { ImageError } from '../core/errors.ts';
import { MiB } from '../core/units.ts';

/** VMDK descriptors: text that says what a disk consists of. After VMware's "Virtual Disk Format 5.0"; see docs/formats/vmdk.md. */

export const MAX_DESCRIPTOR = 1 * MiB;
export const MAX_EXTENTS = 4096;
const SECTOR = 512;

/** CID and parentCID that mean "none". */
export const NO_CID = 0xffffffff;
/** A CID that means "see ddb.longContentID". */
export const LONG_CID = 0xfffffffe;

export type ExtentAccess = 'RW' | 'RDONLY' | 'NOACCESS';

export interface ExtentLine {
  readonly access: ExtentAccess;
  /** Bytes of the disk that it covers. */
  readonly length: number;
  /** Upper case: SPARSE, FLAT, ZERO, VMFS, VMFSSPARSE, VMFSRDM, VMFSRAW, SESPARSE, … */
  readonly type: string;
  /** As written, decoded; undefined for ZERO. */
  readonly file: string | undefined;
  /** Bytes into the file. */
  readonly offset: number;
  /** Line in the descriptor, from 1: for messages. */
  readonly line: number;
}

const EXTENT = /^(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Z0-9]+)(?:\s+"([^"]*)"(?:\s+(\d+))?.*)?$/i;
const SETTING = /^(\s*)([A-Za-z][\w.]*)(\s*=\s*)("?)(.*?)\4(\s*)$/;

/**
 * A descriptor that can be changed line by line: whatever is not changed stays byte for byte, known or not.
 */
export class VmdkDescriptor {
  /** One character per byte, line ends included: text in any encoding passes through. */
  readonly #lines: string[];
  readonly #path: string;
  readonly #decode: (text: string) => string;
  readonly extents: readonly ExtentLine[];

  /**
   * @param bytes the text; ends at the first NUL
   * @throws {ImageError} BAD_MAGIC, BAD_HEADER, UNSUPPORTED, TOO_LARGE naming the line
   */
  constructor(bytes: Uint8Array, path: string) {
    if (bytes.length > MAX_DESCRIPTOR)
      throw new ImageError('TOO_LARGE', `its descriptor is larger than ${MAX_DESCRIPTOR} bytes`, { path });
    const end = bytes.indexOf(0);
    const text = Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('latin1');
    this.#path = path;
    this.#lines = text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
    if (!looksLikeDescriptor(bytes)) throw new ImageError('BAD_MAGIC', 'is no VMDK descriptor', { path, offset: 0 });
    this.#decode = decoderOf(this.#raw('encoding'));
    const version = this.number('version') ?? 0;
    if (version < 1 || version > 3) {
      throw new ImageError('UNSUPPORTED', `descriptor version ${version} is none of 1, 2, 3`, {
        path,
        field: 'version',
      });
    }
    this.extents = this.#readExtents();
  }

  /** The value of a setting, decoded, without quotes; undefined when there is none. Names are case-insensitive. */
  get(key: string): string | undefined {
    const value = this.#raw(key);
    return value === undefined ? undefined : this.#decode(value);
  }

  number(key: string): number | undefined {
    const value = this.get(key);
    return value !== undefined && /^\d{1,9}$/.test(value) ? Number(value) : undefined;
  }

  /** CID or parentCID. @throws {ImageError} BAD_HEADER */
  cid(key: 'CID' | 'parentCID'): number {
    const value = this.get(key);
    if (value === undefined) return NO_CID;
    if (!/^(0x)?[0-9a-f]{1,8}$/i.test(value)) {
      throw new ImageError('BAD_HEADER', `${key} is ${JSON.stringify(value)}, which is no number of 32 bits`, {
        path: this.#path,
        field: key,
      });
    }
    return Number.parseInt(value.replace(/^0x/i, ''), 16);
  }

  get createType(): string {
    return this.get('createType') ?? '';
  }

  /** All settings whose names begin so, in lower case, with their values. */
  settings(prefix: string): Map<string, string> {
    const found = new Map<string, string>();
    for (const line of this.#lines) {
      const match = SETTING.exec(withoutEnd(line));
      const key = match?.[2]?.toLowerCase();
      if (key?.startsWith(prefix.toLowerCase())) found.set(key, this.#decode(match?.[5] ?? ''));
    }
    return found;
  }

  /** Replaces a value (ASCII), keeping its line otherwise as it is; or adds a line behind the one of `after`. */
  set(key: string, value: string, after = 'version'): void {
    const index = this.#find(key);
    if (index >= 0) {
      const line = this.#lines[index] as string;
      const [, indent, name, equals, quote, , rest] = SETTING.exec(withoutEnd(line)) as RegExpExecArray;
      this.#lines[index] = `${indent}${name}${equals}${quote}${value}${quote}${rest}${endOf(line)}`;
      return;
    }
    const place = this.#find(after);
    const end = endOf(this.#lines[Math.max(0, place)] ?? '\n') || '\n';
    const quoted = key.startsWith('ddb.') ? `${key} = "${value}"` : `${key}=${value}`;
    this.#lines.splice(place + 1, 0, `${quoted}${end}`);
  }

  /** The text as bytes; what was not changed is as it was. */
  toBytes(): Uint8Array {
    return new Uint8Array(Buffer.from(this.#lines.join(''), 'latin1'));
  }

  #find(key: string): number {
    const wanted = key.toLowerCase();
    return this.#lines.findIndex((line) => SETTING.exec(withoutEnd(line))?.[2]?.toLowerCase() === wanted);
  }

  #raw(key: string): string | undefined {
    const index = this.#find(key);
    return index < 0 ? undefined : SETTING.exec(withoutEnd(this.#lines[index] as string))?.[5];
  }

  #readExtents(): ExtentLine[] {
    const extents: ExtentLine[] = [];
    let total = 0;
    for (const [i, line] of this.#lines.entries()) {
      const text = withoutEnd(line).trim();
      if (!/^(RW|RDONLY|NOACCESS)\s/i.test(text)) continue;
      const fail = (why: string): never => {
        throw new ImageError('BAD_HEADER', `line ${i + 1} of its descriptor: ${why}`, { path: this.#path });
      };
      const match = EXTENT.exec(text) ?? fail('no extent can be read from it');
      const [, access = '', sectors = '', type = '', file, offset] = match;
      if (extents.length === MAX_EXTENTS) fail(`there are more than ${MAX_EXTENTS} extents`);
      const length = Number(sectors) * SECTOR;
      total += length;
      if (!Number.isSafeInteger(total)) fail('the extents add up to 2^53 bytes or more');
      const start = Number(offset ?? 0) * SECTOR;
      if (!Number.isSafeInteger(start)) fail('the offset is 2^53 bytes or more');
      const kind = type.toUpperCase();
      if (file === undefined && kind !== 'ZERO' && access.toUpperCase() !== 'NOACCESS') fail('the extent has no file');
      extents.push({
        access: access.toUpperCase() as ExtentAccess,
        length,
        type: kind,
        file: file === undefined ? undefined : this.#decode(file),
        offset: start,
        line: i + 1,
      });
    }
    return extents;
  }
}

/** Whether text begins as a descriptor: its first line that is neither blank nor a comment is version=N. */
export function looksLikeDescriptor(head: Uint8Array): boolean {
  const end = head.indexOf(0);
  const text = Buffer.from(end < 0 ? head : head.subarray(0, end)).toString('latin1');
  const first = text.split(/\r?\n/).find((line) => !/^\s*(#.*)?$/.test(line));
  return first !== undefined && /^\s*version\s*=\s*\d+\s*$/i.test(first);
}

function withoutEnd(line: string): string {
  return line.replace(/\r?\n$/, '');
}

function endOf(line: string): string {
  return /\r?\n$/.exec(line)?.[0] ?? '';
}

/** Text is UTF-8 unless the descriptor says otherwise; bytes that are not valid there are kept one character each. */
function decoderOf(encoding: string | undefined): (text: string) => string {
  let decoder: InstanceType<typeof TextDecoder>;
  try {
    decoder = new TextDecoder(encoding ?? 'utf-8', { fatal: true });
  } catch {
    return (text) => text;
  }
  return (text) => {
    try {
      return decoder.decode(Buffer.from(text, 'latin1'));
    } catch {
      return text;
    }
  };
}

/** A CID as descriptors write it. */
export function cidText(cid: number): string {
  return cid.toString(16).padStart(8, '0');
}
