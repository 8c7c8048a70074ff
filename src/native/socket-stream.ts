/** A connected stream socket without Node's streams around it: one call per event, memory that is used again, writes that are done at once. */

import type { Socket } from 'node:net';
import { native, requireNative, type StreamHandle } from './binding.ts';
import { EAGAIN } from './errno.ts';
import { addressOf } from './memory.ts';

export interface SocketEvents {
  /** Bytes have come: the first `length` of `bytes`, which is another's when this returns. */
  readonly data: (bytes: Uint8Array, length: number) => void;
  /** There is room again after tryWrite had less than asked. */
  readonly writable: () => void;
  /** The other side sends no more. */
  readonly end: () => void;
  readonly error: (errno: number) => void;
}

/** What one event reads at most: some tens of requests with their data. */
const BUFFER_LENGTH = 256 * 1024;
// An addon from before there were streams has none: the sockets stay Node's.
const words = native?.streamWords ?? new Float64Array(0);
const MAX_SEGMENTS = words.length >>> 1;

/** All streams of this thread read into it: what came is used up before the next one's turn. */
let buffer: Uint8Array | undefined;

export class SocketStream {
  readonly #handle: StreamHandle;
  #readable = true;
  #writable = false;
  #closed = false;
  #segments = 0;

  /** @param fd a connected socket; the stream has a descriptor of its own for it */
  constructor(fd: number, events: SocketEvents) {
    const binding = requireNative();
    const { streamWritable } = binding;
    const memory = (buffer ??= Buffer.allocUnsafeSlow(BUFFER_LENGTH));
    this.#handle = binding.streamOpen(fd, memory, (event) => {
      if (event === streamWritable) events.writable();
      else if (event > 0) events.data(memory, event);
      else if (event === 0) events.end();
      else events.error(event);
    });
    binding.streamWatch(this.#handle, true, false);
  }

  /**
   * Takes a connection over from Node: its socket is closed, the connection goes on here.
   *
   * @returns undefined, and nothing has changed, without the addon, without a descriptor to spare, and for sockets with bytes under way on either side
   */
  static adopt(socket: Socket, events: SocketEvents): SocketStream | undefined {
    const fd = (socket as unknown as { _handle?: { fd?: unknown } })._handle?.fd;
    if (MAX_SEGMENTS === 0 || typeof fd !== 'number' || fd < 0) return undefined;
    if (socket.destroyed || socket.connecting || socket.writableLength > 0 || socket.readableLength > 0)
      return undefined;
    try {
      return new SocketStream(fd, events);
    } catch {
      return undefined; // no descriptor to be had: the socket stays Node's
    }
  }

  /** Adds a piece to the next write. @returns false when no more fit into one call */
  add(memory: Uint8Array, start: number, end: number): boolean {
    const at = 2 * this.#segments;
    if (this.#segments === MAX_SEGMENTS) return false;
    // Native code takes addresses: what is out of bounds here would be somebody else's memory there.
    if (!(start >= 0 && start <= end && end <= memory.length)) throw new RangeError('a piece is not inside its memory');
    words[at] = addressOf(memory) + start;
    words[at + 1] = end - start;
    this.#segments++;
    return true;
  }

  /** Writes what was added, as much as there is room for. @returns bytes, or a negative errno that ends the connection */
  tryWrite(): number {
    const segments = this.#segments;
    this.#segments = 0;
    const done = requireNative().streamWrite(this.#handle, segments);
    return done === EAGAIN ? 0 : done;
  }

  watch(readable: boolean, writable: boolean): void {
    if (this.#closed || (readable === this.#readable && writable === this.#writable)) return;
    this.#readable = readable;
    this.#writable = writable;
    requireNative().streamWatch(this.#handle, readable, writable);
  }

  /** Says that nothing more comes from our side. */
  shutdown(): void {
    if (!this.#closed) requireNative().streamShutdown(this.#handle);
  }

  /** Safe to call twice. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    requireNative().streamClose(this.#handle);
  }
}
