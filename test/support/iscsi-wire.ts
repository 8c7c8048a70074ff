/** iSCSI PDUs as a test writes and reads them: built from named fields, decoded into objects. Independent of the code under test. */

/** A PDU with its fields by name; those that an opcode does not have are meaningless. Offsets: RFC 7143 section 11. */
export interface Pdu {
  readonly opcode: number;
  readonly immediate: boolean;
  /** Byte 1. */
  readonly flags: number;
  readonly bytes: Buffer;
  readonly data: Buffer;
  readonly headerDigest?: number;
  readonly dataDigest?: number;
}

export interface PduFields {
  opcode: number;
  immediate?: boolean;
  flags?: number;
  itt?: number;
  /** Byte 20: target transfer tag, expected length, referenced tag, CID in the upper half. */
  word20?: number;
  cmdSN?: number;
  expStatSN?: number;
  word32?: number;
  word36?: number;
  word40?: number;
  word44?: number;
  /** Bytes from 32 on. */
  cdb?: Uint8Array;
  lun?: number;
  ahs?: Uint8Array;
  data?: Uint8Array;
  /** Said length of the data, when it is to be a lie. */
  dataLength?: number;
}

/** Digest over bytes, as the session negotiated it. */
export type Digest = (bytes: Uint8Array) => number;

export function encodePdu(fields: PduFields, digests: { header?: Digest; data?: Digest } = {}): Buffer {
  const ahs = fields.ahs ?? new Uint8Array(0);
  const data = fields.data ?? new Uint8Array(0);
  const header = Buffer.alloc(48 + ahs.length);
  header[0] = fields.opcode | (fields.immediate === true ? 0x40 : 0);
  header[1] = fields.flags ?? 0x80;
  header.writeUInt32BE(fields.dataLength ?? data.length, 4);
  header[4] = ahs.length / 4;
  writeLun(header, fields.lun ?? 0);
  header.writeUInt32BE(fields.itt ?? 0, 16);
  header.writeUInt32BE(fields.word20 ?? 0, 20);
  header.writeUInt32BE(fields.cmdSN ?? 0, 24);
  header.writeUInt32BE(fields.expStatSN ?? 0, 28);
  header.writeUInt32BE(fields.word32 ?? 0, 32);
  header.writeUInt32BE(fields.word36 ?? 0, 36);
  header.writeUInt32BE(fields.word40 ?? 0, 40);
  header.writeUInt32BE(fields.word44 ?? 0, 44);
  if (fields.cdb !== undefined) header.set(fields.cdb.subarray(0, 16), 32);
  header.set(ahs, 48);
  const parts: Uint8Array[] = [header];
  if (digests.header !== undefined) parts.push(digestBytes(digests.header(header)));
  if (data.length > 0) {
    const padded = Buffer.alloc((data.length + 3) & ~3);
    padded.set(data);
    parts.push(padded);
    if (digests.data !== undefined) parts.push(digestBytes(digests.data(padded)));
  }
  return Buffer.concat(parts);
}

function writeLun(header: Buffer, lun: number): void {
  if (lun < 256) header[9] = lun;
  else header.writeUInt16BE(0x4000 | lun, 8);
}

function digestBytes(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** Cuts a stream into PDUs. */
export class PduDecoder {
  headerDigest = false;
  dataDigest = false;
  #rest: Buffer = Buffer.alloc(0);

  push(bytes: Uint8Array): void {
    this.#rest = Buffer.concat([this.#rest, bytes]);
  }

  /** The next whole PDU. Digest settings count for what has not been taken out yet. */
  next(): Pdu | undefined {
    const bytes = this.#rest;
    if (bytes.length < 48) return undefined;
    const length = bytes.readUInt32BE(4) & 0xffffff;
    const headerEnd = 48 + (bytes[4] as number) * 4;
    const dataAt = headerEnd + (this.headerDigest ? 4 : 0);
    const padded = (length + 3) & ~3;
    const withDigest = this.dataDigest && length > 0;
    const end = dataAt + padded + (withDigest ? 4 : 0);
    if (bytes.length < end) return undefined;
    this.#rest = bytes.subarray(end);
    const first = bytes[0] as number;
    return {
      opcode: first & 0x3f,
      immediate: (first & 0x40) !== 0,
      flags: bytes[1] as number,
      bytes: bytes.subarray(0, headerEnd),
      data: bytes.subarray(dataAt, dataAt + length),
      ...(this.headerDigest ? { headerDigest: bytes.readUInt32LE(headerEnd) } : {}),
      ...(withDigest ? { dataDigest: bytes.readUInt32LE(dataAt + padded) } : {}),
    };
  }
}

export function textOf(data: Uint8Array): Map<string, string> {
  const items = Buffer.from(data)
    .toString('utf8')
    .split('\0')
    .filter((item) => item !== '');
  return new Map(items.map((item) => [item.slice(0, item.indexOf('=')), item.slice(item.indexOf('=') + 1)]));
}

export function textBytes(pairs: Readonly<Record<string, string>>): Buffer {
  return Buffer.from(
    Object.entries(pairs)
      .map(([key, value]) => `${key}=${value}\0`)
      .join(''),
  );
}

/** CRC32C, bit by bit: slow, and obviously right. */
export function slowCrc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return ~crc >>> 0;
}
