import { LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { ExtentBuffer } from '../../formats/image/extent.ts';
import type { Image, ImageLimits } from '../../formats/image/image.ts';
import type { ResizeOptions } from '../../formats/image/layer.ts';
import { formatOfHead, HEAD } from '../open/foreign.ts';

/**
 * A raw image whose format was found by probing, guarded from its own guest.
 *
 * What the guest writes to the start of a raw disk is the start of the file. A guest that writes a qcow2 header there makes the next
 * program that probes open a qcow2 image, with a backing file of the guest's choice: /etc/shadow (CVE-2008-2004 and its kin). So
 * writes that would make the start look like another format are refused with READ_ONLY. Naming the format (`-f raw`) is the
 * way to say that nobody probes this image, and then nothing is refused.
 *
 * Only what touches the first 4 KiB pays for it.
 */
export class ProbeGuard implements Image {
  readonly #image: Image;
  readonly #warn: (text: string) => void;
  #warned = false;
  /** Changes to the head go one after the other: each is judged against what the one before has left. */
  #queue: Promise<void> = Promise.resolve();
  /** Changes that wait or run: the synchronous calls keep off the head meanwhile. */
  #queued = 0;
  /** Where the furthest of them ends: behind the head, what begins below waits for its turn as well. */
  #queuedEnd = HEAD;

  /** @param warn is told once, when the first write is refused */
  constructor(image: Image, warn: (text: string) => void) {
    this.#image = image;
    this.#warn = warn;
  }

  get path(): string {
    return this.#image.path;
  }
  get format(): string {
    return this.#image.format;
  }
  get size(): number {
    return this.#image.size;
  }
  get readOnly(): boolean {
    return this.#image.readOnly;
  }
  get limits(): ImageLimits {
    return this.#image.limits;
  }
  get mappingChanges(): number {
    return this.#image.mappingChanges ?? 0;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    return !this.#overtakes(offset) && this.#image.tryReadv(offset, iov);
  }

  readv(offset: number, iov: IoVec): Promise<void> {
    // A read must not pass an earlier write that still waits to be judged.
    if (!this.#overtakes(offset)) return this.#image.readv(offset, iov);
    return this.#queue.then(() => this.#image.readv(offset, iov));
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    return offset >= HEAD && !this.#overtakes(offset) && this.#image.tryWritev(offset, iov);
  }

  writev(offset: number, iov: IoVec): Promise<void> {
    if (offset >= HEAD) return this.#behindHead(offset, iov.byteLength, () => this.#image.writev(offset, iov));
    return this.#judged(
      offset + iov.byteLength,
      (head) => iov.copyOut(0, head.subarray(offset)),
      () => this.#image.writev(offset, iov),
    );
  }

  writeZeroes(offset: number, length: number, unmap: boolean): Promise<void> {
    if (offset >= HEAD) return this.#behindHead(offset, length, () => this.#image.writeZeroes(offset, length, unmap));
    return this.#judged(
      offset + length,
      (head) => head.fill(0, offset, offset + length),
      () => this.#image.writeZeroes(offset, length, unmap),
    );
  }

  async discard(offset: number, length: number): Promise<boolean> {
    let done = false;
    const discard = async (): Promise<void> => {
      done = await this.#image.discard(offset, length);
    };
    if (offset >= HEAD) await this.#behindHead(offset, length, discard);
    else await this.#judged(offset + length, (head) => head.fill(0, offset, offset + length), discard);
    return done;
  }

  readModifyWrite(offset: number, length: number, change: (bytes: Uint8Array) => boolean): Promise<void> {
    if (offset >= HEAD)
      return this.#behindHead(offset, length, () => this.#image.readModifyWrite(offset, length, change));
    return this.#inTurn(offset + length, async () => {
      const head = await this.#readHead();
      let refused: string | undefined;
      await this.#image.readModifyWrite(offset, length, (bytes) => {
        if (!change(bytes)) return false;
        head.set(bytes.subarray(0, Math.max(0, head.length - offset)), offset);
        refused = formatOfHead(head);
        return refused === undefined;
      });
      if (refused !== undefined) throw this.#refusal(refused);
    });
  }

  flush(): Promise<void> {
    return this.#image.flush();
  }

  publish(): Promise<void> {
    return this.#image.publish?.() ?? this.#image.flush();
  }

  map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    return this.#image.map(offset, length, out);
  }

  resize(size: number, options?: Partial<ResizeOptions>): Promise<void> {
    return this.#image.resize(size, options);
  }

  onResize(listener: (size: number) => void): () => void {
    return this.#image.onResize(listener);
  }

  async close(): Promise<void> {
    await this.#queue;
    await this.#image.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Runs a change of the head unless what it leaves would look like another format. */
  #judged(end: number, apply: (head: Uint8Array) => void, run: () => Promise<void>): Promise<void> {
    return this.#inTurn(end, async () => {
      const head = await this.#readHead();
      apply(head);
      const format = formatOfHead(head);
      if (format !== undefined) throw this.#refusal(format);
      await run();
    });
  }

  /** Whether something at `offset` may overlap a change that waits or runs. */
  #overtakes(offset: number): boolean {
    return this.#queued > 0 && offset < this.#queuedEnd;
  }

  /** Runs a change that does not touch the head: now, unless it would pass an earlier one that reaches that far. */
  #behindHead(offset: number, length: number, run: () => Promise<void>): Promise<void> {
    return this.#overtakes(offset) ? this.#inTurn(offset + length, run) : run();
  }

  #inTurn(end: number, work: () => Promise<void>): Promise<void> {
    this.#queued++;
    this.#queuedEnd = Math.max(this.#queuedEnd, end);
    const done = this.#queue.then(work).finally(() => {
      if (--this.#queued === 0) this.#queuedEnd = HEAD;
    });
    this.#queue = done.catch(() => undefined);
    return done;
  }

  async #readHead(): Promise<Uint8Array> {
    const head = new Uint8Array(Math.min(HEAD, this.#image.size));
    await this.#image.readv(0, IoVec.of(head));
    return head;
  }

  #refusal(format: string): LunetteError {
    const why = `a write that would make this raw image look like ${format} was refused`;
    if (!this.#warned) this.#warn(`${this.path}: ${why}; with -f raw it would be let through`);
    this.#warned = true;
    return new LunetteError('READ_ONLY', why, { path: this.path, offset: 0 });
  }
}
