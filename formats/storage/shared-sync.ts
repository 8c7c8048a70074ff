import { LunetteError, StorageError } from '../core/errors.ts';
import { Turns } from '../core/turns.ts';

/**
 * Makes concurrent syncs share a call without weakening what each of them promises: a caller joins only a sync that has not started,
 * so that everything written before it asked is covered. A failure is final: the kernel reports a lost write once, so a later
 * success would be a lie. So it is never NO_SPACE, which callers take for something to try again: a disk that turns out to be full now has
 * dropped what it took before. Where nothing was written since the last sync began, there is nothing to do.
 */
export class SharedSync {
  readonly #turns: Turns;
  #failure: { readonly error: unknown } | undefined;
  /** Something may not be durable. At first too: who wrote before us may have been killed. */
  #written = true;

  constructor(sync: () => Promise<void>) {
    this.#turns = new Turns(() => this.#turn(sync));
  }

  /** A write has completed, or failed half-way. */
  wrote(): void {
    this.#written = true;
  }

  run(): Promise<void> {
    if (!this.#written && this.#turns.running === undefined && this.#failure === undefined) return Promise.resolve();
    return this.#turns.ask(true);
  }

  async #turn(sync: () => Promise<void>): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.error;
    this.#written = false;
    try {
      await sync();
    } catch (error) {
      this.#failure = { error: asFinal(error) };
      throw this.#failure.error;
    }
  }
}

function asFinal(error: unknown): unknown {
  if (!(error instanceof LunetteError) || error.code === 'IO') return error;
  return new StorageError('IO', error.message, { path: error.path, cause: error });
}
