import { type LunetteError, ProtocolError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import { Arena, CHUNK_DATA, CHUNK_SIZE, type Chunk, type ChunkShare } from '../wire/chunk-pool.ts';
import type { Output } from '../wire/output.ts';
import { blockStatus } from './block-status.ts';
import type { NbdCounters } from './counters.ts';
import { EINVAL, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, nbdErrno } from './errno.ts';
import type { Agreement } from './handshake.ts';
import { HOLE_UNIT, holeRuns, readRuns } from './holes.ts';
import type { NbdLimits } from './limits.ts';
import { prefetch } from './prefetch.ts';
import * as wire from './protocol.ts';
import { ReplyWriter } from './reply-writer.ts';
import { Request } from './request.ts';
import type { TransmissionOptions } from './transmission-options.ts';

/**
 * Server side of transmission, without a socket: requests come in as bytes, replies go to the output.
 *
 * A read that hits is answered in the call it came in, straight behind its reply's head in the output: no promise, no
 * closure and no object are made for it. The same goes for writes that the image takes at once.
 */
export class Transmission {
  readonly agreement: Agreement;
  /** Requests under way. */
  inFlight = 0;
  readonly #image: Image;
  readonly #readOnly: boolean;
  readonly #size: number;
  readonly #options: TransmissionOptions;
  readonly #limits: NbdLimits;
  readonly #counters: NbdCounters;
  readonly #output: Output;
  readonly #share: ChunkShare;
  readonly #writer: ReplyWriter;
  readonly #arena: Arena;
  readonly #headLength: number;
  readonly #magic: number;
  readonly #structured: boolean;
  readonly #seesHoles: boolean;
  /** The request being read, or answered at once. */
  readonly #now = new Request();
  readonly #free: Request[] = [];
  /** A head that straddles chunks. */
  readonly #partial = new Uint8Array(wire.EXTENDED_REQUEST_LENGTH);
  readonly #partialView = new DataView(this.#partial.buffer);
  #have = 0;
  /** Payload of #now that has not come yet. */
  #payloadLeft = 0;
  /** What the payload's end is answered with, when it is of no use; the payload is dropped. */
  #refusal = 0;
  #refusalText = '';
  /** Takes a payload that comes in pieces. */
  #target: Request | undefined;
  #bytes: Uint8Array | undefined;
  #view: DataView = this.#partialView;
  #stopped = false;
  #idle: (() => void) | undefined;
  /** A long request waits for memory. */
  #starved = false;
  readonly #fed = (): void => {
    this.#starved = false;
    this.#options.wake();
  };

  constructor(options: TransmissionOptions) {
    const { agreement } = options;
    this.#options = options;
    this.agreement = agreement;
    this.#image = agreement.export.image;
    this.#readOnly = agreement.export.readOnly;
    this.#size = agreement.size;
    this.#limits = options.limits;
    this.#counters = options.counters;
    this.#output = options.output;
    this.#share = options.share;
    this.#writer = new ReplyWriter(options.output, agreement.mode);
    this.#arena = new Arena(options.share);
    const extended = agreement.mode === wire.EXTENDED;
    this.#headLength = extended ? wire.EXTENDED_REQUEST_LENGTH : wire.REQUEST_LENGTH;
    this.#magic = extended ? wire.EXTENDED_REQUEST_MAGIC : wire.REQUEST_MAGIC;
    this.#structured = agreement.mode !== wire.SIMPLE;
    // An image that never allocates has no holes that it knows of without asking the host.
    this.#seesHoles = this.#structured && this.#image.limits.allocationUnit > 1 && this.#image.readsZero !== undefined;
  }

  /** A request has begun and not come to its end. */
  get partial(): boolean {
    return this.#have > 0 || this.#payloadLeft > 0;
  }

  /** No further request is begun for now: answers are not taken, or memory is short. */
  get blocked(): boolean {
    const { queued } = this.#output;
    if (this.#starved || this.inFlight >= this.#limits.maxRequests || queued >= this.#limits.outputLimit) return true;
    if (this.inFlight === 0 && queued === 0) return false;
    return !this.#share.allows(CHUNK_SIZE);
  }

  /**
   * Takes bytes of the client, cut anywhere.
   *
   * @returns where it stopped: at `end`, or earlier while it is blocked
   * @throws {ProtocolError} after which the connection is to be closed
   */
  receive(bytes: Uint8Array, start: number, end: number): number {
    if (bytes !== this.#bytes) {
      this.#bytes = bytes;
      this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    }
    let at = start;
    while (at < end) {
      if (this.#stopped) return end;
      if (this.#payloadLeft > 0) {
        at = this.#takePayload(bytes, at, end);
        continue;
      }
      if (this.blocked) return at;
      if (this.#have === 0 && end - at >= this.#headLength) {
        if (!this.#admits(this.#view, at)) return at;
        at += this.#headLength;
        this.#begin(this.#view, at - this.#headLength);
        continue;
      }
      const take = Math.min(this.#headLength - this.#have, end - at);
      this.#partial.set(bytes.subarray(at, at + take), this.#have);
      if (this.#have + take === this.#headLength) {
        if (!this.#admits(this.#partialView, 0)) return at;
        this.#have = 0;
        this.#begin(this.#partialView, 0);
      } else {
        this.#have += take;
      }
      at += take;
    }
    return at;
  }

  /** Whether there is memory for a request now. A long one waits until others have given some back: not all clients can have 32 MiB at once. */
  #admits(view: DataView, at: number): boolean {
    const { maxPayload, ownMemory } = this.#limits;
    // The low half in both forms; a high one makes it too long.
    const length = view.getUint32(at + this.#headLength - 4);
    if (length <= CHUNK_DATA || length > maxPayload || view.getUint16(at + 6) > wire.CMD_WRITE) return true;
    const own = length <= ownMemory && this.inFlight === 0 && this.#output.queued === 0;
    this.#starved = !own && !this.#share.admits(length, this.#fed);
    if (own) this.#share.leave();
    return !this.#starved;
  }

  /** Takes no more requests. @returns resolves when nothing is under way any more */
  stop(): Promise<void> {
    this.#stopped = true;
    this.#target?.release();
    this.#target = undefined;
    this.#arena.close();
    this.#share.leave();
    if (this.inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const before = this.#idle;
      this.#idle = () => {
        before?.();
        resolve();
      };
    });
  }

  #begin(view: DataView, at: number): void {
    if (view.getUint32(at) !== this.#magic) throw new ProtocolError('PROTOCOL', 'a request without its magic');
    const now = this.#now.readHead(view, at, this.#headLength === wire.EXTENDED_REQUEST_LENGTH);
    this.#counters.requests++;
    if (now.type === wire.CMD_READ) this.#read(now);
    else if (now.type === wire.CMD_WRITE) this.#beginWrite(now);
    else this.#other(now);
  }

  // --- READ ---

  #read(now: Request): void {
    const { offset, length } = now;
    if ((now.flags & ~(wire.CMD_FLAG_FUA | (this.#structured ? wire.CMD_FLAG_DF : 0))) !== 0)
      return this.#badFlags(now);
    if (length > this.#limits.maxPayload) {
      // EOVERFLOW is for those who could ask again without DF.
      const errno = (now.flags & wire.CMD_FLAG_DF) === 0 ? EINVAL : EOVERFLOW;
      return this.#refuse(now, errno, 'more than the maximum of one read');
    }
    if (!this.#inside(now)) return;
    if (length === 0) return this.#writer.done(now, this.#structured);
    if (this.#seesHoles && length >= HOLE_UNIT && (now.flags & wire.CMD_FLAG_DF) === 0 && this.#readHoles(now)) return;
    const output = this.#output;
    const head = this.#writer.dataHead;
    if (length > CHUNK_DATA) return this.#readPieces(now);
    const chunk = output.ensure(head + length);
    const { at } = output;
    const { iov } = now;
    iov.clear().append(chunk.memory, at + head, length);
    try {
      if (this.#image.tryReadv(offset, iov)) {
        this.#writer.putDataHead(chunk.view, at, now, offset, length, true);
        output.commit(head + length);
        return;
      }
    } catch (error) {
      this.#fail(now, error);
      return;
    }
    const request = this.#later(now);
    request.iov.append(chunk.memory, at + head, length);
    request.hold(output.setAside(head + length), at, head + length);
    void this.#run(request, () => this.#readLater(request));
  }

  /** A read that does not fit into one chunk of memory. One reply all the same. */
  #readPieces(now: Request): void {
    const request = this.#later(now);
    for (let done = 0; done < now.length; ) {
      const head = done === 0 ? this.#writer.dataHead : 0;
      const length = Math.min(CHUNK_DATA, now.length - done);
      const chunk = this.#output.ensure(head + length);
      const { at } = this.#output;
      request.iov.append(chunk.memory, at + head, length);
      request.hold(this.#output.setAside(head + length), at, head + length);
      done += length;
    }
    try {
      if (this.#image.tryReadv(now.offset, request.iov)) {
        this.#push(request);
        this.#recycle(request);
        return;
      }
    } catch (error) {
      this.#fail(request, error);
      request.release();
      this.#recycle(request);
      return;
    }
    void this.#run(request, () => this.#readLater(request));
  }

  async #readLater(request: Request): Promise<void> {
    await this.#image.readv(request.offset, request.iov);
    this.#push(request);
  }

  /** Queues a read's reply, whose data is in place. */
  #push(request: Request): void {
    const { chunks, starts, ends } = request;
    const first = chunks[0] as Chunk;
    this.#writer.putDataHead(first.view, starts[0] as number, request, request.offset, request.length, true);
    for (let i = 0; i < chunks.length; i++) {
      this.#output.push(chunks[i] as Chunk, starts[i] as number, ends[i] as number);
    }
    request.forget();
  }

  /** Answers a read that is known to have holes, in chunks. @returns false when it is not known to have any */
  #readHoles(now: Request): boolean {
    const runs = holeRuns(this.#image, now.offset, now.length);
    if (runs === undefined) return false;
    if (runs.length === 2 && runs[0] === now.offset) {
      this.#writer.hole(now, now.offset, now.length, true);
      return true;
    }
    const request = this.#later(now);
    void this.#run(request, () => readRuns(this.#image, this.#writer, request, runs));
    return true;
  }

  // --- WRITE ---

  #beginWrite(now: Request): void {
    const { length } = now;
    // The payload is on its way whatever we think of it: bounded before it is waited for.
    if (length > this.#limits.maxPayload) throw new ProtocolError('LIMIT', `a write of ${length} bytes`);
    const flags = wire.CMD_FLAG_FUA | (this.agreement.mode === wire.EXTENDED ? wire.CMD_FLAG_PAYLOAD_LEN : 0);
    this.#refusal = 0;
    if (this.#readOnly) this.#refusePayload(EPERM, 'the export is read-only');
    else if ((now.flags & ~flags) !== 0) this.#refusePayload(EINVAL, 'flags that do not go with this command');
    else if (now.offset + length > Math.min(this.#size, this.#image.size)) this.#refusePayload(ENOSPC, PAST_THE_END);
    this.#payloadLeft = length;
    if (length === 0) this.#endPayload();
    else if (length > CHUNK_DATA && this.#refusal === 0) this.#target = this.#withMemory(now); // it was admitted for that
  }

  /** A request for a payload that comes in pieces. */
  #withMemory(now: Request): Request {
    const target = this.#later(now);
    this.#arena.allocate(now.length, target.iov, target.chunks);
    return target;
  }

  #refusePayload(errno: number, why: string): void {
    this.#refusal = errno;
    this.#refusalText = why;
  }

  #takePayload(bytes: Uint8Array, at: number, end: number): number {
    const now = this.#now;
    const take = Math.min(this.#payloadLeft, end - at);
    if (this.#refusal === 0 && (take < now.length || this.#target !== undefined)) {
      this.#target ??= this.#withMemory(now);
      this.#target.iov.copyIn(now.length - this.#payloadLeft, bytes.subarray(at, at + take));
    }
    this.#payloadLeft -= take;
    if (this.#payloadLeft > 0) return at + take;
    const whole = this.#target === undefined && this.#refusal === 0;
    if (whole) this.#writeFrom(now, bytes, at, take);
    else this.#endPayload();
    return at + take;
  }

  /** A payload is complete that did not come in one piece, is empty or is not wanted. */
  #endPayload(): void {
    const now = this.#now;
    const target = this.#target;
    this.#target = undefined;
    if (this.#refusal !== 0) {
      this.#refuse(now, this.#refusal, this.#refusalText);
    } else if (target === undefined) {
      if ((now.flags & wire.CMD_FLAG_FUA) === 0) this.#writer.done(now);
      else this.#flush(now);
    } else if (this.#tryWrite(target, target.iov)) {
      target.release();
      this.#recycle(target);
      if (this.inFlight === 0) this.#arena.trim();
    } else {
      void this.#run(target, () => this.#writeLater(target));
    }
  }

  /** A payload that lies whole in a chunk of the socket is written from there; it is copied only when it has to wait. */
  #writeFrom(now: Request, bytes: Uint8Array, at: number, length: number): void {
    const { iov } = now;
    iov.clear().append(bytes, at, length);
    if (this.#tryWrite(now, iov)) {
      iov.clear();
      return;
    }
    const request = this.#withMemory(now);
    request.iov.copyFrom(0, iov, 0, length);
    iov.clear();
    void this.#run(request, () => this.#writeLater(request));
  }

  /** Writes at once if the image does. @returns true when the request is answered, or on its way to be */
  #tryWrite(request: Request, iov: IoVec): boolean {
    try {
      if (!this.#image.tryWritev(request.offset, iov)) return false;
    } catch (error) {
      this.#fail(request, error);
      return true;
    }
    if ((request.flags & wire.CMD_FLAG_FUA) === 0) this.#writer.done(request);
    else this.#flush(request);
    return true;
  }

  async #writeLater(request: Request): Promise<void> {
    await this.#image.writev(request.offset, request.iov);
    await this.#settle(request);
  }

  // --- the rest ---

  #other(now: Request): void {
    const { type } = now;
    if ((now.flags & wire.CMD_FLAG_PAYLOAD_LEN) !== 0 && this.agreement.mode === wire.EXTENDED) {
      // A payload that was never agreed on; still it has to be passed over.
      if (now.length > this.#limits.maxPayload) throw new ProtocolError('LIMIT', `a payload of ${now.length} bytes`);
      this.#refusePayload(EINVAL, 'this command takes no payload');
      this.#payloadLeft = now.length;
      if (now.length === 0) this.#endPayload();
    } else if (type === wire.CMD_DISC) {
      this.#stopped = true;
      this.#options.disconnect();
    } else if (type === wire.CMD_FLUSH) {
      if ((now.flags & ~wire.CMD_FLAG_FUA) !== 0) this.#badFlags(now);
      else this.#flush(now);
    } else if (type === wire.CMD_TRIM || type === wire.CMD_WRITE_ZEROES) {
      this.#change(now);
    } else if (type === wire.CMD_BLOCK_STATUS) {
      this.#blockStatus(now);
    } else if (type === wire.CMD_CACHE) {
      if ((now.flags & ~wire.CMD_FLAG_FUA) !== 0) this.#badFlags(now);
      else if (this.#inside(now))
        this.#start(now, async (request) => {
          request.chunks.push(this.#share.take());
          await prefetch(this.#image, request, () => this.#stopped);
          this.#writer.done(request);
        });
    } else {
      this.#refuse(now, EINVAL, `command ${type} is not known here`);
    }
  }

  /** A request that is answered with the end of a flush. */
  #flush(now: Request): void {
    this.#start(now, async (request) => {
      await this.#image.flush();
      this.#writer.done(request);
    });
  }

  /** TRIM and WRITE_ZEROES. */
  #change(now: Request): void {
    const zeroes = now.type === wire.CMD_WRITE_ZEROES;
    const image = this.#image;
    const flags = wire.CMD_FLAG_FUA | (zeroes ? wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO : 0);
    if (this.#readOnly) return this.#refuse(now, EPERM, 'the export is read-only');
    if ((now.flags & ~flags) !== 0) return this.#badFlags(now);
    if (!this.#inside(now)) return;
    if ((now.flags & wire.CMD_FLAG_FAST_ZERO) !== 0 && image.limits.zeroUnit === 0) {
      return this.#refuse(now, ENOTSUP, 'zeros are no quicker than data here');
    }
    this.#start(now, async (request) => {
      const { offset, length } = request;
      if (zeroes) await image.writeZeroes(offset, length, (request.flags & wire.CMD_FLAG_NO_HOLE) === 0);
      else await image.discard(offset, length);
      await this.#settle(request);
    });
  }

  #blockStatus(now: Request): void {
    const { contexts } = this.agreement;
    if ((now.flags & ~(wire.CMD_FLAG_REQ_ONE | wire.CMD_FLAG_FUA)) !== 0) return this.#badFlags(now);
    if (contexts.length === 0) return this.#refuse(now, EINVAL, 'no meta context was agreed on');
    if (now.length === 0) return this.#refuse(now, EINVAL, 'the status of nothing');
    if (!this.#inside(now)) return;
    this.#start(now, async (request) => {
      const { offset, length, flags } = request;
      const one = (flags & wire.CMD_FLAG_REQ_ONE) !== 0;
      const found = await blockStatus(this.agreement.export, { offset, length }, contexts, one);
      found.forEach((descriptors, i) => {
        this.#writer.blockStatus(request, contexts[i] as number, descriptors, i === contexts.length - 1);
      });
    });
  }

  /** The end of a change: after a flush when FUA asks for it. */
  async #settle(request: Request): Promise<void> {
    if ((request.flags & wire.CMD_FLAG_FUA) !== 0) await this.#image.flush();
    this.#writer.done(request);
  }

  #start(now: Request, work: (request: Request) => Promise<void>): void {
    const request = this.#later(now);
    void this.#run(request, () => work(request));
  }

  async #run(request: Request, work: () => Promise<void>): Promise<void> {
    this.inFlight++;
    try {
      await work();
    } catch (error) {
      this.#fail(request, error);
    }
    request.release();
    this.#recycle(request);
    this.inFlight--;
    if (this.inFlight === 0) {
      if (this.#target === undefined) this.#arena.trim(); // an idle client holds no memory
      this.#idle?.();
    }
    this.#options.wake();
  }

  #later(now: Request): Request {
    return (this.#free.pop() ?? new Request()).copyHead(now);
  }

  #recycle(request: Request): void {
    if (this.#free.length < 64) this.#free.push(request);
  }

  #inside(now: Request): boolean {
    if (now.offset + now.length <= Math.min(this.#size, this.#image.size)) return true;
    this.#refuse(now, now.type === wire.CMD_WRITE_ZEROES ? ENOSPC : EINVAL, PAST_THE_END);
    return false;
  }

  #badFlags(now: Request): void {
    this.#refuse(now, EINVAL, 'flags that do not go with this command');
  }

  #refuse(now: Request, errno: number, why: string): void {
    this.#counters.requestErrors++;
    this.#writer.error(now, errno, why);
  }

  #fail(request: Request, error: unknown): void {
    // Paths are nobody's business out there; the code and what it means are.
    const text = (error as LunetteError | undefined)?.code ?? 'INTERNAL';
    this.#refuse(request, nbdErrno(error), text);
  }
}

const PAST_THE_END = 'past the end of the export';
