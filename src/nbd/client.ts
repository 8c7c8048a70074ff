import { setTimeout as pause } from 'node:timers/promises';
import { type ErrorCode, LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { Lifetime } from '../../formats/core/lifetime.ts';
import { RangeLock } from '../../formats/core/range-lock.ts';
import { alignDown, alignUp } from '../../formats/core/units.ts';
import { DATA, type ExtentBuffer, ZERO } from '../../formats/image/extent.ts';
import type { Image, ImageLimits } from '../../formats/image/image.ts';
import { ClientConnection, type ConnectOptions } from './client-connection.ts';
import type { Negotiated } from './client-handshake.ts';
import * as wire from './protocol.ts';
import { type NbdUri, parseNbdUri } from './uri.ts';

export interface NbdImageOptions extends Partial<ConnectOptions> {
  readonly readOnly?: boolean | undefined;
  /** Connections at most; servers that do not say CAN_MULTI_CONN get one. Default 4. */
  readonly connections?: number;
  /** How long a lost server is looked for before requests fail, ms. Default 30 s; 0: not at all. */
  readonly reconnectMs?: number;
  /** Who runs the server for us; absent: somebody else does. */
  readonly keeper?: ServerKeeper;
  /** What the image is to its user, in place of a raw disk at a URI. */
  readonly shown?: { readonly path: string; readonly format: string };
}

/** Keeps a server running that serves one image only. */
export interface ServerKeeper {
  /** Asked before each connection is made. @throws {LunetteError} while the server cannot run */
  ready(): Promise<void>;
  /** The image is closed: nobody needs the server any more. */
  release(): Promise<void>;
}

const CONNECT_TIMEOUT_MS = 15_000;
const REQUEST_TIMEOUT_MS = 60_000;
const RECONNECT_MS = 30_000;
const RETRY_DELAY_MS = 50;
const MAX_RETRY_DELAY_MS = 2000;
/** Connections that one request may lose, once reconnectMs is over, before it fails. */
const MAX_LOSSES = 5;
const MAX_TIMEOUTS = 2;
/** Zeroing, status and cache requests have no payload; kept to what 32 bits and other servers' patience allow. */
const MAX_CHANGE = 1024 * 1024 * 1024;
/** What may be over when a server is started once more. */
const PASSING: ReadonlySet<ErrorCode> = new Set(['IO', 'LOCKED', 'TIMEOUT', 'DISCONNECTED', 'NO_SPACE', 'LIMIT']);
/** Requests that a connection has before another one is opened beside it. */
const BUSY = 8;

/**
 * A disk on an NBD server.
 *
 * When the server goes away, requests wait, and are sent again once it is back: all of them may be done twice. What it had acknowledged and
 * not made durable may be gone with it, though. So if a connection is lost with unflushed writes behind it, the next flush fails, and
 * the image takes no more writes: pretending would be worse.
 */
export class NbdImage implements Image {
  readonly path: string;
  readonly format: string;
  readonly size: number;
  readonly readOnly: boolean;
  readonly limits: ImageLimits;
  readonly #uri: NbdUri;
  readonly #options: ConnectOptions & { connections: number; reconnectMs: number };
  readonly #keeper: ServerKeeper | undefined;
  readonly #negotiated: Negotiated;
  readonly #lifetime: Lifetime;
  readonly #locks = new RangeLock();
  #connections: ClientConnection[];
  #opening: Promise<void> | undefined;
  /** Something is acknowledged that no flush has covered. */
  #unsynced = false;
  /** Acknowledged writes may be lost. */
  #failed: LunetteError | undefined;
  #gaveUp: LunetteError | undefined;

  private constructor(path: string, uri: NbdUri, first: ClientConnection, options: NbdImageOptions & ConnectOptions) {
    const { negotiated } = first;
    const { size, flags, minBlock } = negotiated;
    this.path = path;
    this.format = options.shown?.format ?? 'raw';
    this.#keeper = options.keeper;
    this.#uri = uri;
    this.#negotiated = negotiated;
    this.#options = { connections: 4, reconnectMs: RECONNECT_MS, ...options };
    this.#lifetime = new Lifetime(path);
    this.size = size;
    this.readOnly = options.readOnly === true || (flags & wire.FLAG_READ_ONLY) !== 0;
    const zeroUnit = (flags & wire.FLAG_SEND_WRITE_ZEROES) === 0 ? 0 : minBlock;
    this.limits = { allocationUnit: 1, discardUnit: zeroUnit, zeroUnit };
    this.#connections = [];
    this.#add(first);
  }

  /** Connects to the export that a URI names. @throws {LunetteError} with the URI as its path */
  static async open(text: string, options: NbdImageOptions = {}): Promise<NbdImage> {
    const uri = parseNbdUri(text);
    const times = {
      ...options,
      connectTimeoutMs: options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS,
      requestTimeoutMs: options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS,
    };
    const path = options.shown?.path ?? text;
    try {
      const first = await ClientConnection.open(uri, times);
      if (options.readOnly === false && (first.negotiated.flags & wire.FLAG_READ_ONLY) !== 0) {
        first.close();
        throw new LunetteError('READ_ONLY', 'the server gives this export read-only');
      }
      return new NbdImage(path, uri, first, times);
    } catch (error) {
      if (error instanceof LunetteError) error.path ??= path;
      throw error;
    }
  }

  /** A server is asked: nothing is ever at hand. */
  tryReadv(): boolean {
    return false;
  }

  tryWritev(): boolean {
    return false;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    const length = iov.byteLength;
    this.#check(offset, length);
    if (length === 0) return;
    await this.#during(async () => {
      await this.#locks.passed(offset, length);
      await this.#read(offset, iov);
    });
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    const length = iov.byteLength;
    this.#checkWrite(offset, length);
    if (length > 0) await this.#change(offset, length, () => this.#write(offset, iov));
  }

  async writeZeroes(offset: number, length: number, unmap: boolean): Promise<void> {
    this.#checkWrite(offset, length);
    if (length > 0)
      await this.#change(offset, length, () => this.#zero(offset, length, unmap ? 0 : wire.CMD_FLAG_NO_HOLE));
  }

  /** TRIM promises nothing about what is read afterwards, and a disk of ours does: zeros that make holes, where that is quick. */
  async discard(offset: number, length: number): Promise<boolean> {
    this.#checkWrite(offset, length);
    const unit = this.limits.discardUnit;
    if (unit === 0) return false;
    const start = alignUp(offset, unit);
    const end = alignDown(offset + length, unit);
    if (start >= end) return true;
    let done = true;
    const fast = (this.#negotiated.flags & wire.FLAG_SEND_FAST_ZERO) === 0 ? 0 : wire.CMD_FLAG_FAST_ZERO;
    await this.#change(start, end - start, async () => {
      try {
        await this.#zero(start, end - start, fast);
      } catch (error) {
        // Nothing is quick there: the data stays, as discarding may.
        if (!(error instanceof LunetteError) || error.code !== 'UNSUPPORTED') throw error;
        done = false;
      }
    });
    return done;
  }

  async readModifyWrite(offset: number, length: number, change: (bytes: Uint8Array) => boolean): Promise<void> {
    this.#checkWrite(offset, length);
    if (length === 0) return;
    await this.#change(offset, length, async () => {
      const iov = IoVec.of(new Uint8Array(length));
      await this.#read(offset, iov);
      if (change(iov.contiguous())) await this.#write(offset, iov);
    });
  }

  async flush(): Promise<void> {
    if (this.readOnly) return;
    if (this.#failed !== undefined) throw this.#failed;
    if ((this.#negotiated.flags & wire.FLAG_SEND_FLUSH) === 0 || !this.#unsynced) return;
    await this.#during(async () => {
      this.#unsynced = false; // writes from here on are for the next one
      try {
        await this.#request(wire.CMD_FLUSH, 0, 0, 0);
      } catch (error) {
        this.#fail(error);
      }
      if (this.#failed !== undefined) throw this.#failed;
    });
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    this.#check(offset, length);
    out.begin(offset);
    const { allocationId, minBlock } = this.#negotiated;
    if (length === 0) return 0;
    if (allocationId === undefined) {
      out.append(DATA, length);
      return out.count;
    }
    return this.#during(async () => {
      const start = alignDown(offset, minBlock);
      const asked = Math.min(alignUp(offset + length, minBlock), start + MAX_CHANGE) - start;
      const found = await this.#request(wire.CMD_BLOCK_STATUS, 0, start, Math.min(asked, this.size - start));
      let at = start;
      for (let i = 0; i < found.length && at < offset + length; i += 2) {
        const end = Math.min(at + (found[i] as number), offset + length);
        const zero = ((found[i + 1] as number) & wire.STATE_ZERO) !== 0;
        if (end > out.end && !out.append(zero ? ZERO : DATA, end - out.end)) break;
        at = end;
      }
      if (out.count === 0)
        throw new LunetteError('PROTOCOL', 'the server says nothing about what it was asked', { path: this.path });
      return out.count;
    });
  }

  async resize(): Promise<void> {
    throw new LunetteError('UNSUPPORTED', 'NBD has no way to change the size of an export', { path: this.path });
  }

  /** The size of an export never changes while one is connected. */
  onResize(): () => void {
    return () => undefined;
  }

  close(): Promise<void> {
    return this.#lifetime.close(async () => {
      try {
        const { flags } = this.#negotiated;
        if (this.#failed !== undefined) throw this.#failed;
        if (this.#unsynced && (flags & wire.FLAG_SEND_FLUSH) !== 0) await this.#request(wire.CMD_FLUSH, 0, 0, 0);
        if (this.#failed !== undefined) throw this.#failed;
      } finally {
        const connections = this.#connections;
        this.#connections = [];
        for (const connection of connections) {
          connection.onLost = () => {};
          connection.close();
        }
        await this.#keeper?.release();
      }
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  // --- requests, cut and aligned as the server wants them ---

  async #read(offset: number, iov: IoVec): Promise<void> {
    const { minBlock } = this.#negotiated;
    const end = offset + iov.byteLength;
    if (offset % minBlock !== 0 || end % minBlock !== 0) {
      const start = alignDown(offset, minBlock);
      const whole = IoVec.of(new Uint8Array(Math.min(alignUp(end, minBlock), this.size) - start));
      await this.#pieces(wire.CMD_READ, start, whole);
      iov.copyFrom(0, whole, offset - start, iov.byteLength);
      return;
    }
    await this.#pieces(wire.CMD_READ, offset, iov);
  }

  /** Writes a range that is locked, with the blocks that it touches. */
  async #write(offset: number, iov: IoVec): Promise<void> {
    const { minBlock } = this.#negotiated;
    const end = offset + iov.byteLength;
    this.#checkAlive();
    if (offset % minBlock !== 0 || end % minBlock !== 0) {
      const start = alignDown(offset, minBlock);
      const whole = IoVec.of(new Uint8Array(Math.min(alignUp(end, minBlock), this.size) - start));
      await this.#pieces(wire.CMD_READ, start, whole);
      whole.copyFrom(offset - start, iov, 0, iov.byteLength);
      await this.#pieces(wire.CMD_WRITE, start, whole);
    } else {
      await this.#pieces(wire.CMD_WRITE, offset, iov);
    }
    this.#written();
  }

  async #pieces(type: number, offset: number, iov: IoVec): Promise<void> {
    const { maxPayload } = this.#negotiated;
    const length = iov.byteLength;
    if (length <= maxPayload) {
      await this.#request(type, 0, offset, length, iov);
      return;
    }
    for (let at = 0; at < length; at += maxPayload) {
      const part = iov.slice(at, Math.min(maxPayload, length - at));
      await this.#request(type, 0, offset + at, part.byteLength, part);
    }
  }

  async #zero(offset: number, length: number, flags: number): Promise<void> {
    this.#checkAlive();
    const unit = this.limits.zeroUnit;
    const end = offset + length;
    const start = unit === 0 ? end : Math.min(end, alignUp(offset, unit));
    const stop = unit === 0 ? end : Math.max(start, alignDown(end, unit));
    for (let at = offset; at < start; at += MAX_ZEROS) await this.#write(at, zeros(Math.min(MAX_ZEROS, start - at)));
    for (let at = start; at < stop; at += MAX_CHANGE) {
      await this.#request(wire.CMD_WRITE_ZEROES, flags, at, Math.min(MAX_CHANGE, stop - at));
    }
    if (stop < end) await this.#write(stop, zeros(end - stop));
    this.#written();
  }

  #written(): void {
    this.#unsynced = true;
  }

  /** Sends a request, again and again while the server can be found. */
  async #request(type: number, flags: number, offset: number, length: number, iov?: IoVec): Promise<readonly number[]> {
    let firstLossMs = 0;
    for (let losses = 0; ; ) {
      const connection = this.#best() ?? (await this.#connection());
      try {
        return await connection.request(type, flags, offset, length, iov);
      } catch (error) {
        if (connection.lost !== undefined && error === connection.lost && this.#options.reconnectMs > 0) {
          if (losses === 0) firstLossMs = performance.now();
          if (type === wire.CMD_FLUSH) this.#fail(error);
          else if (this.#tryAgain(error as LunetteError, ++losses, firstLossMs)) {
            // At once the first time; a server that this very request may have killed is given time.
            if (losses > 1) await pause(Math.min(MAX_RETRY_DELAY_MS, RETRY_DELAY_MS * 2 ** losses));
            continue;
          }
        }
        if (error instanceof LunetteError) error.path ??= this.path;
        throw error;
      }
    }
  }

  /** Whether a request whose connections were lost so often is asked once more. A server that takes it and goes, or is silent, is not asked for ever. */
  #tryAgain({ code }: LunetteError, losses: number, firstLossMs: number): boolean {
    if (code === 'PROTOCOL') return false;
    if (performance.now() - firstLossMs < this.#options.reconnectMs) return true;
    return losses < (code === 'TIMEOUT' ? MAX_TIMEOUTS : MAX_LOSSES);
  }

  /** The least busy connection, now: the next request must see this one counted. */
  #best(): ClientConnection | undefined {
    let best: ClientConnection | undefined;
    for (const connection of this.#connections) {
      if (best === undefined || connection.inFlight < best.inFlight) best = connection;
    }
    if (best !== undefined && best.inFlight >= BUSY) this.#addOne();
    return best;
  }

  /** A connection, opened anew when none is left. */
  async #connection(): Promise<ClientConnection> {
    for (;;) {
      if (this.#gaveUp !== undefined) throw this.#gaveUp;
      const best = this.#best();
      if (best !== undefined) return best;
      this.#opening ??= this.#reconnect().finally(() => {
        this.#opening = undefined;
      });
      await this.#opening;
    }
  }

  /** Opens one connection more, on the side. That it fails is no matter: there is one. */
  #addOne(): void {
    const multi = (this.#negotiated.flags & wire.FLAG_CAN_MULTI_CONN) !== 0;
    if (!multi || this.#opening !== undefined || this.#connections.length >= this.#options.connections) return;
    this.#opening = this.#openOne()
      .catch(() => undefined)
      .finally(() => {
        this.#opening = undefined;
      });
  }

  async #openOne(): Promise<void> {
    await this.#haveServer();
    const connection = await ClientConnection.open(this.#uri, this.#options);
    const { size, flags, minBlock, maxPayload, allocationId } = connection.negotiated;
    const before = this.#negotiated;
    const same =
      size === before.size &&
      flags === before.flags &&
      minBlock === before.minBlock &&
      maxPayload === before.maxPayload &&
      (allocationId === undefined) === (before.allocationId === undefined);
    if (!same || this.#lifetime.closed) {
      connection.close();
      if (same) return;
      this.#gaveUp = new LunetteError('IO', 'the export is not what it was: its size or abilities have changed', {
        path: this.path,
      });
      throw this.#gaveUp;
    }
    this.#add(connection);
  }

  /** A server of our own is started again, but not when what it had acknowledged may be lost: its image could be older than what was read of it. */
  async #haveServer(): Promise<void> {
    if (this.#keeper === undefined) return;
    try {
      if (this.#failed !== undefined) throw this.#failed;
      await this.#keeper.ready();
    } catch (error) {
      if (!(error instanceof LunetteError) || !PASSING.has(error.code) || error === this.#failed) {
        this.#gaveUp = error as LunetteError;
      }
      throw error;
    }
  }

  async #reconnect(): Promise<void> {
    const deadline = performance.now() + this.#options.reconnectMs;
    for (let wait = RETRY_DELAY_MS; ; wait = Math.min(2 * wait, MAX_RETRY_DELAY_MS)) {
      try {
        return await this.#openOne();
      } catch (error) {
        if (this.#gaveUp !== undefined || performance.now() + wait > deadline) {
          if (error instanceof LunetteError) error.path ??= this.path;
          throw error;
        }
      }
      await pause(wait);
    }
  }

  #add(connection: ClientConnection): void {
    this.#connections.push(connection);
    connection.onLost = () => {
      this.#connections = this.#connections.filter((other) => other !== connection);
      if (this.#unsynced) this.#fail(connection.lost);
    };
  }

  #fail(cause: unknown): void {
    this.#failed ??= new LunetteError(
      'IO',
      'what was written and not flushed may be lost, the image takes no more writes until it is opened again',
      { path: this.path, cause },
    );
  }

  async #change(offset: number, length: number, act: () => Promise<void>): Promise<void> {
    const { minBlock } = this.#negotiated;
    const start = alignDown(offset, minBlock);
    await this.#during(async () => {
      const hold = await this.#locks.acquire(start, alignUp(offset + length, minBlock) - start);
      try {
        await act();
      } finally {
        this.#locks.release(hold);
      }
    });
  }

  async #during<T>(act: () => Promise<T>): Promise<T> {
    this.#lifetime.enter();
    try {
      return await act();
    } finally {
      this.#lifetime.leave();
    }
  }

  #checkAlive(): void {
    if (this.#failed !== undefined) throw this.#failed;
  }

  #checkWrite(offset: number, length: number): void {
    if (this.readOnly) throw new LunetteError('READ_ONLY', 'the export is read-only', { path: this.path, offset });
    this.#check(offset, length);
  }

  #check(offset: number, length: number): void {
    if (offset >= 0 && length >= 0 && offset + length <= this.size) return;
    throw new LunetteError('OUT_OF_RANGE', `${length} bytes at ${offset} are not inside of ${this.size}`, {
      path: this.path,
      offset,
    });
  }
}

const MAX_ZEROS = 1024 * 1024;

function zeros(length: number): IoVec {
  return IoVec.of(new Uint8Array(length));
}
