import type { Output } from '../wire/output.ts';
import * as wire from './protocol.ts';
import type { Request } from './request.ts';

/** What a reply needs of its request: cookie, and in extended mode the offset. */
export type Replied = Pick<Request, 'cookieHigh' | 'cookieLow' | 'offsetHigh' | 'offsetLow'>;

const MAX_MESSAGE = 256;

/** Puts replies into the output in the form that was agreed. */
export class ReplyWriter {
  readonly mode: wire.ReplyMode;
  readonly output: Output;
  /** Bytes that stand before the data of a read. */
  readonly dataHead: number;
  /** Length of a reply's or chunk's head. */
  readonly #head: number;

  constructor(output: Output, mode: wire.ReplyMode) {
    this.output = output;
    this.mode = mode;
    this.#head = [wire.SIMPLE_REPLY_LENGTH, wire.STRUCTURED_REPLY_LENGTH, wire.EXTENDED_REPLY_LENGTH][mode] as number;
    this.dataHead = mode === wire.SIMPLE ? this.#head : this.#head + 8;
  }

  /** Writes the head of a read's reply, `dataHead` bytes, in front of data that is there. */
  putDataHead(view: DataView, at: number, to: Replied, offset: number, length: number, done: boolean): void {
    if (this.mode === wire.SIMPLE) {
      view.setUint32(at, wire.SIMPLE_REPLY_MAGIC);
      view.setUint32(at + 4, 0);
      view.setUint32(at + 8, to.cookieHigh);
      view.setUint32(at + 12, to.cookieLow);
      return;
    }
    this.#putChunkHead(view, at, to, wire.REPLY_OFFSET_DATA, length + 8, done);
    putOffset(view, at + this.#head, offset);
  }

  /** A read's whole answer when all of it is zeros, or a part of one. */
  hole(to: Replied, offset: number, length: number, done: boolean): void {
    const { view } = this.output.ensure(this.#head + 12);
    const { at } = this.output;
    this.#putChunkHead(view, at, to, wire.REPLY_OFFSET_HOLE, 12, done);
    putOffset(view, at + this.#head, offset);
    view.setUint32(at + this.#head + 8, length);
    this.output.commit(this.#head + 12);
  }

  /** Success without data: of everything but READ and BLOCK_STATUS, or the end of what was sent in chunks. */
  done(to: Replied, chunked = false): void {
    const extended = this.mode === wire.EXTENDED;
    if (extended || chunked) {
      const { view } = this.output.ensure(this.#head);
      this.#putChunkHead(view, this.output.at, to, wire.REPLY_NONE, 0, true);
      this.output.commit(this.#head);
    } else {
      this.#simple(to, 0);
    }
  }

  error(to: Replied, errno: number, message: string): void {
    if (this.mode === wire.SIMPLE) {
      this.#simple(to, errno);
      return;
    }
    const text = Buffer.from(message.slice(0, MAX_MESSAGE));
    const length = 6 + text.length;
    const { view, memory } = this.output.ensure(this.#head + length);
    const { at } = this.output;
    this.#putChunkHead(view, at, to, wire.REPLY_ERROR, length, true);
    view.setUint32(at + this.#head, errno);
    view.setUint16(at + this.#head + 4, text.length);
    memory.set(text, at + this.#head + 6);
    this.output.commit(this.#head + length);
  }

  /** Descriptors of one context: pairs of length and flags. */
  blockStatus(to: Replied, id: number, descriptors: readonly number[], done: boolean): void {
    const extended = this.mode === wire.EXTENDED;
    const each = extended ? 16 : 8;
    const count = descriptors.length / 2;
    const payload = (extended ? 8 : 4) + count * each;
    const { view } = this.output.ensure(this.#head + payload);
    const start = this.output.at;
    const type = extended ? wire.REPLY_BLOCK_STATUS_EXT : wire.REPLY_BLOCK_STATUS;
    this.#putChunkHead(view, start, to, type, payload, done);
    let at = start + this.#head;
    view.setUint32(at, id);
    at += 4;
    if (extended) {
      view.setUint32(at, count);
      at += 4;
    }
    for (let i = 0; i < count; i++, at += each) {
      const length = descriptors[2 * i] as number;
      const flags = descriptors[2 * i + 1] as number;
      if (extended) {
        putOffset(view, at, length);
        putOffset(view, at + 8, flags);
      } else {
        view.setUint32(at, length);
        view.setUint32(at + 4, flags);
      }
    }
    this.output.commit(this.#head + payload);
  }

  #simple(to: Replied, errno: number): void {
    const { view } = this.output.ensure(wire.SIMPLE_REPLY_LENGTH);
    const { at } = this.output;
    view.setUint32(at, wire.SIMPLE_REPLY_MAGIC);
    view.setUint32(at + 4, errno);
    view.setUint32(at + 8, to.cookieHigh);
    view.setUint32(at + 12, to.cookieLow);
    this.output.commit(wire.SIMPLE_REPLY_LENGTH);
  }

  #putChunkHead(view: DataView, at: number, to: Replied, type: number, length: number, done: boolean): void {
    const extended = this.mode === wire.EXTENDED;
    view.setUint32(at, extended ? wire.EXTENDED_REPLY_MAGIC : wire.STRUCTURED_REPLY_MAGIC);
    view.setUint32(at + 4, ((done ? wire.REPLY_FLAG_DONE : 0) << 16) | type);
    view.setUint32(at + 8, to.cookieHigh);
    view.setUint32(at + 12, to.cookieLow);
    if (extended) {
      view.setUint32(at + 16, to.offsetHigh);
      view.setUint32(at + 20, to.offsetLow);
      view.setUint32(at + 24, 0);
      view.setUint32(at + 28, length);
    } else {
      view.setUint32(at + 16, length);
    }
  }
}

function putOffset(view: DataView, at: number, offset: number): void {
  view.setUint32(at, Math.floor(offset / 2 ** 32));
  view.setUint32(at + 4, offset % 2 ** 32);
}
