import { IoVec } from '../../formats/core/iov.ts';
import type { Chunk } from '../wire/chunk-pool.ts';

/** A request that does not complete in the tick it came in, or whose payload is still coming. Reused. */
export class Request {
  type = 0;
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** The offset as it came, for replies that repeat it. */
  offsetHigh = 0;
  offsetLow = 0;
  offset = 0;
  /** Of the request: the payload's for READ and WRITE. */
  length = 0;
  /** Payload of a read or write. */
  readonly iov = new IoVec();
  /** Memory that the request holds. */
  readonly chunks: Chunk[] = [];
  /** Read: where each piece starts in its chunk, and ends. */
  readonly starts: number[] = [];
  readonly ends: number[] = [];

  /** Takes over what stands in a request's head, in its short or its extended form. */
  readHead(view: DataView, at: number, extended: boolean): this {
    const word = view.getUint32(at + 4);
    this.flags = word >>> 16;
    this.type = word & 0xffff;
    this.cookieHigh = view.getUint32(at + 8);
    this.cookieLow = view.getUint32(at + 12);
    this.offsetHigh = view.getUint32(at + 16);
    this.offsetLow = view.getUint32(at + 20);
    this.offset = this.offsetHigh * 2 ** 32 + this.offsetLow;
    this.length = view.getUint32(at + 24);
    if (extended) this.length = this.length * 2 ** 32 + view.getUint32(at + 28);
    return this;
  }

  /** Becomes the same request as another; its memory stays the other's. */
  copyHead(other: Request): this {
    this.type = other.type;
    this.flags = other.flags;
    this.cookieHigh = other.cookieHigh;
    this.cookieLow = other.cookieLow;
    this.offsetHigh = other.offsetHigh;
    this.offsetLow = other.offsetLow;
    this.offset = other.offset;
    this.length = other.length;
    return this;
  }

  /** Takes over a hold on memory that a reply is made in, `length` bytes from `start`. */
  hold(chunk: Chunk, start: number, length: number): void {
    this.chunks.push(chunk);
    this.starts.push(start);
    this.ends.push(start + length);
  }

  /** Gives all memory back. */
  release(): void {
    for (const chunk of this.chunks) chunk.release();
    this.forget();
  }

  /** The memory has gone to somebody else. */
  forget(): void {
    this.chunks.length = 0;
    this.starts.length = 0;
    this.ends.length = 0;
    this.iov.clear();
  }
}
