import { createHash, type Hash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';

const ZEROS = new Uint8Array(MiB);
/** Zeros that are hashed before others have their turn: some ten milliseconds. */
const ZEROS_AT_ONCE = 16 * MiB;

/** SHA-256 of a whole disk, from its parts in order; what is left out is zeros. Long holes take time, in which other things go on. */
export class StreamChecksum {
  readonly #hash: Hash = createHash('sha256');
  readonly #signal: AbortSignal | undefined;
  #at = 0;
  /** Ends when what was asked for before has been done; undefined: it has. */
  #busy: Promise<void> | undefined;

  /** @param signal ends what takes long */
  constructor(signal?: AbortSignal | undefined) {
    this.#signal = signal;
  }

  /**
   * Takes the bytes at an offset behind those before.
   *
   * @returns undefined when that is done, else when it is: the bytes must stay until then. @throws {LunetteError} ABORTED
   */
  update(offset: number, bytes: Uint8Array): Promise<void> | undefined {
    if (this.#busy === undefined && offset === this.#at) {
      this.#add(bytes);
      return undefined;
    }
    return this.#inTurn(async () => {
      await this.#zerosTo(offset);
      this.#add(bytes);
    });
  }

  /** @returns 64 hexadecimal digits */
  async finish(size: number): Promise<string> {
    await this.#inTurn(() => this.#zerosTo(size));
    return this.#hash.digest('hex');
  }

  #inTurn(act: () => Promise<void>): Promise<void> {
    const before = this.#busy;
    const work = (async () => {
      await before;
      await act();
    })();
    const busy = work.finally(() => {
      if (this.#busy === busy) this.#busy = undefined;
    });
    this.#busy = busy;
    busy.catch(() => undefined); // the caller hears of it
    return work;
  }

  #add(bytes: Uint8Array): void {
    this.#hash.update(bytes);
    this.#at += bytes.length;
  }

  async #zerosTo(offset: number): Promise<void> {
    for (let sinceTurn = 0; this.#at < offset; ) {
      const take = Math.min(ZEROS.length, offset - this.#at);
      this.#add(take === ZEROS.length ? ZEROS : ZEROS.subarray(0, take));
      sinceTurn += take;
      if (sinceTurn < ZEROS_AT_ONCE) continue;
      sinceTurn = 0;
      await nextTurn();
      if (this.#signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted');
    }
  }
}
