import { LunetteError, ProtocolError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import { codeOfNbdErrno } from './errno.ts';
import * as wire from './protocol.ts';

/** A request of ours that waits for its reply. */
export interface Pending {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** READ: where data goes. */
  readonly iov: IoVec | undefined;
  /** Bytes of a read that are there. */
  received: number;
  /** Parts of a read that came, start and end by turns, in order; made when more than one does. */
  parts: number[] | undefined;
  /** An error chunk has come. */
  error: LunetteError | undefined;
  /** BLOCK_STATUS: pairs of length and flags. */
  readonly descriptors: number[];
  resolve(): void;
  reject(error: Error): void;
}

/** Longest chunk that carries no data of a read: descriptors and messages. */
const MAX_CHUNK = 2 * 1024 * 1024;
const NOTHING = new Uint8Array(0);
/** Less data than this comes faster together with what follows it. */
const SHORTEST_DIRECT = 64 * 1024;

/**
 * Cuts a server's bytes into replies and gives them to those who wait. Data goes straight from the socket's chunk to where the
 * request wants it, or is received there in the first place. Nothing that a server says is believed: what is not inside of what was asked ends the connection.
 */
export class ReplyReader {
  readonly #mode: wire.ReplyMode;
  readonly #allocationId: number | undefined;
  /** By cookie. */
  readonly #pending: Map<number, Pending>;
  readonly #head = Buffer.alloc(wire.EXTENDED_REPLY_LENGTH + 8);
  #have = 0;
  #need = 4;
  #current: Pending | undefined;
  #cookie = 0;
  #done = false;
  #type = 0;
  /** Data of a read that has not come yet, and where it goes. */
  #dataLeft = 0;
  #dataAt = 0;
  /** Payload of another chunk. */
  #payload: Uint8Array = NOTHING;
  #payloadHave = 0;
  #inPayload = false;

  constructor(pending: Map<number, Pending>, mode: wire.ReplyMode, allocationId: number | undefined) {
    this.#pending = pending;
    this.#mode = mode;
    this.#allocationId = allocationId;
  }

  /**
   * Where the bytes that come next may be received directly: they are data, and many.
   *
   * @returns undefined: anywhere else, for receive()
   */
  destination(): Uint8Array | undefined {
    const iov = this.#dataLeft < SHORTEST_DIRECT ? undefined : this.#current?.iov;
    if (iov === undefined) return undefined;
    let skip = this.#dataAt;
    for (let i = 0; i < iov.count; i++) {
      const size = iov.lengths[i] as number;
      if (skip < size) {
        const length = Math.min(size - skip, this.#dataLeft);
        if (length < SHORTEST_DIRECT) return undefined;
        const start = (iov.offsets[i] as number) + skip;
        return (iov.memory[i] as Uint8Array).subarray(start, start + length);
      }
      skip -= size;
    }
    return undefined;
  }

  /** So many bytes have come to the destination. */
  arrived(length: number): void {
    this.#dataAt += length;
    this.#dataLeft -= length;
    if (this.#dataLeft === 0) this.#endChunk();
  }

  /** Takes bytes, cut anywhere. @throws {ProtocolError} after which the connection is to be closed */
  receive(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (this.#dataLeft > 0) {
        const take = Math.min(this.#dataLeft, bytes.length - at);
        this.#current?.iov?.copyIn(this.#dataAt, bytes.subarray(at, at + take));
        this.#dataAt += take;
        this.#dataLeft -= take;
        at += take;
        if (this.#dataLeft === 0) this.#endChunk();
      } else if (this.#inPayload) {
        const take = Math.min(this.#payload.length - this.#payloadHave, bytes.length - at);
        this.#payload.set(bytes.subarray(at, at + take), this.#payloadHave);
        this.#payloadHave += take;
        at += take;
        if (this.#payloadHave === this.#payload.length) this.#endPayload();
      } else {
        const take = Math.min(this.#need - this.#have, bytes.length - at);
        this.#head.set(bytes.subarray(at, at + take), this.#have);
        this.#have += take;
        at += take;
        if (this.#have === this.#need) this.#more();
      }
    }
  }

  /** So much of a head is there as was asked for. */
  #more(): void {
    const magic = this.#head.readUInt32BE(0);
    const simple = magic === wire.SIMPLE_REPLY_MAGIC && this.#mode !== wire.EXTENDED;
    const chunk =
      (magic === wire.STRUCTURED_REPLY_MAGIC && this.#mode === wire.STRUCTURED) ||
      (magic === wire.EXTENDED_REPLY_MAGIC && this.#mode === wire.EXTENDED);
    if (!simple && !chunk) throw new ProtocolError('PROTOCOL', 'a reply without its magic');
    const length = simple
      ? wire.SIMPLE_REPLY_LENGTH
      : this.#mode === wire.EXTENDED
        ? wire.EXTENDED_REPLY_LENGTH
        : wire.STRUCTURED_REPLY_LENGTH;
    if (this.#have < length) {
      this.#need = length;
    } else if (this.#have > length) {
      this.#beginData();
    } else {
      this.#find();
      if (simple) this.#simpleReply();
      else this.#beginChunk(length);
    }
  }

  #find(): void {
    this.#cookie = this.#head.readUInt32BE(8) * 2 ** 32 + this.#head.readUInt32BE(12);
    this.#current = this.#pending.get(this.#cookie);
    if (this.#current === undefined) throw new ProtocolError('PROTOCOL', 'a reply to a request that was not made');
  }

  #simpleReply(): void {
    const current = this.#current as Pending;
    const errno = this.#head.readUInt32BE(4);
    if (errno !== 0) current.error = serverError(errno, '');
    if (current.type === wire.CMD_READ && this.#mode !== wire.SIMPLE && errno === 0) {
      throw new ProtocolError('PROTOCOL', 'a read is answered in the wrong form');
    }
    this.#done = true;
    this.#reset();
    if (current.type === wire.CMD_READ && errno === 0) {
      current.received = current.length;
      this.#dataAt = 0;
      this.#dataLeft = current.length;
    }
    if (this.#dataLeft === 0) this.#endChunk();
  }

  #beginChunk(headLength: number): void {
    const head = this.#head;
    const current = this.#current as Pending;
    const extended = headLength === wire.EXTENDED_REPLY_LENGTH;
    this.#done = (head.readUInt16BE(4) & wire.REPLY_FLAG_DONE) !== 0;
    this.#type = head.readUInt16BE(6);
    const length = extended ? head.readUInt32BE(24) * 2 ** 32 + head.readUInt32BE(28) : head.readUInt32BE(16);
    if (this.#type === wire.REPLY_OFFSET_DATA) {
      if (current.type !== wire.CMD_READ || length <= 8 || length - 8 > current.length) {
        throw new ProtocolError('PROTOCOL', `${length} bytes of data that were not asked for`);
      }
      this.#dataAt = length - 8; // until the offset is known
      this.#need = headLength + 8;
      return;
    }
    if (length > MAX_CHUNK) throw new ProtocolError('PROTOCOL', `a chunk of ${length} bytes`);
    this.#reset();
    this.#payload = length === 0 ? NOTHING : new Uint8Array(length);
    this.#payloadHave = 0;
    this.#inPayload = true;
    if (length === 0) this.#endPayload();
  }

  /** The offset in front of data is there. */
  #beginData(): void {
    const current = this.#current as Pending;
    const length = this.#dataAt;
    const at = readOffset(this.#head, this.#have - 8) - current.offset;
    this.#claim(at, length);
    this.#reset();
    this.#dataAt = at;
    this.#dataLeft = length;
  }

  /** A part of a read has come. */
  #claim(at: number, length: number): void {
    const current = this.#current as Pending;
    const first = current.received === 0;
    current.received += length;
    if (length === 0 || at < 0 || at + length > current.length || current.received > current.length) {
      throw new ProtocolError('PROTOCOL', 'data outside of what was asked for');
    }
    if (first && length === current.length) return;
    current.parts ??= [];
    // Bytes that come twice would hide that others did not come.
    if (!insertPart(current.parts, at, at + length)) {
      throw new ProtocolError('PROTOCOL', 'data that the server has sent already');
    }
  }

  #endPayload(): void {
    const current = this.#current as Pending;
    const payload = Buffer.from(this.#payload.buffer, this.#payload.byteOffset, this.#payload.length);
    this.#payload = NOTHING;
    this.#inPayload = false;
    const type = this.#type;
    if (type === wire.REPLY_OFFSET_HOLE) {
      if (payload.length !== 12 || current.type !== wire.CMD_READ) throw malformed('hole');
      const at = readOffset(payload, 0) - current.offset;
      const length = payload.readUInt32BE(8);
      this.#claim(at, length);
      current.iov?.fill(at, length);
    } else if (type === (this.#mode === wire.EXTENDED ? wire.REPLY_BLOCK_STATUS_EXT : wire.REPLY_BLOCK_STATUS)) {
      this.#blockStatus(current, payload, this.#mode === wire.EXTENDED);
    } else if ((type & wire.REPLY_FLAG_ERROR) !== 0) {
      if (payload.length < 6 || 6 + payload.readUInt16BE(4) > payload.length) throw malformed('error');
      const message = payload.toString('utf8', 6, 6 + Math.min(256, payload.readUInt16BE(4)));
      current.error ??= serverError(payload.readUInt32BE(0), message);
    } else if (type !== wire.REPLY_NONE || payload.length > 0 || !this.#done) {
      throw malformed('reply');
    }
    this.#endChunk();
  }

  #blockStatus(current: Pending, payload: Buffer, extended: boolean): void {
    const start = extended ? 8 : 4;
    const each = extended ? 16 : 8;
    if (
      current.type !== wire.CMD_BLOCK_STATUS ||
      payload.length < start + each ||
      (payload.length - start) % each !== 0 ||
      (extended && payload.readUInt32BE(4) !== (payload.length - start) / each)
    ) {
      throw malformed('block status');
    }
    if (payload.readUInt32BE(0) !== this.#allocationId) return;
    if (current.descriptors.length > 0) throw malformed('block status');
    for (let at = start; at < payload.length; at += each) {
      const length = extended ? readOffset(payload, at) : payload.readUInt32BE(at);
      if (length === 0) throw malformed('block status');
      current.descriptors.push(length, payload.readUInt32BE(extended ? at + 12 : at + 4));
    }
  }

  #endChunk(): void {
    const current = this.#current as Pending;
    this.#current = undefined;
    if (!this.#done) return;
    this.#pending.delete(this.#cookie);
    const { error } = current;
    if (error !== undefined) current.reject(error);
    else if (current.type === wire.CMD_READ && current.received !== current.length) {
      current.reject(new ProtocolError('PROTOCOL', 'the server left out a part of what was asked for'));
    } else current.resolve();
  }

  #reset(): void {
    this.#have = 0;
    this.#need = 4;
  }
}

/** Enters a part into a sorted list of them. @returns false when it overlaps another */
function insertPart(parts: number[], start: number, end: number): boolean {
  // Nearly always it is the next one.
  let at = parts.length;
  while (at > 0 && (parts[at - 2] as number) >= start) at -= 2;
  if (at > 0 && (parts[at - 1] as number) > start) return false;
  if (at < parts.length && (parts[at] as number) < end) return false;
  if (at > 0 && parts[at - 1] === start) parts[at - 1] = end;
  else parts.splice(at, 0, start, end);
  return true;
}

function malformed(what: string): ProtocolError {
  return new ProtocolError('PROTOCOL', `a malformed ${what}`);
}

function serverError(errno: number, message: string): LunetteError {
  const said = message === '' ? '' : `: ${message}`;
  return new LunetteError(codeOfNbdErrno(errno), `the server answers with error ${errno}${said}`);
}

function readOffset(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4);
}
