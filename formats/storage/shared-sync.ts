import { LunetteError, StorageError } from '../core/errors.ts';

/**
 * Makes concurrent syncs share a call without weakening what each of them promises: a caller joins only a sync that has not started,
 * so that everything written before it asked is covered. A failure is final: the kernel reports a lost write once, so a later
 * success would be a lie. So it is never NO_SPACE, which callers take for something to try again: a disk that turns out to be full now has
 * dropped what it took before. Where nothing was written since the last sync began, there is nothing to do.
 */
export class SharedSync {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: { readonly error: unknown } | undefined;
  /** Something may not be durable. At first too: who wrote before us may have been killed. */
  #written = true;

  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** A write has completed, or failed half-way. */
  wrote(): void {
    this.#written = true;
  }

  run(): Promise<void> {
    if (!this.#written && this.#running === undefined && this.#failure === undefined) return Promise.resolve();
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#start();
    const start = (): Promise<void> => {
      this.#next = undefined;
      return this.#start();
    };
    this.#next = this.#running.then(start, start);
    return this.#next;
  }

  #start(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure.error);
    this.#written = false;
    const running = this.#sync().then(
      () => {
        this.#running = undefined;
      },
      (error: unknown) => {
        this.#running = undefined;
        this.#failure = { error: asFinal(error) };
        throw this.#failure.error;
      },
    );
    this.#running = running;
    return running;
  }
}

function asFinal(error: unknown): unknown {
  if (!(error instanceof LunetteError) || error.code === 'IO') return error;
  return new StorageError('IO', error.message, { path: error.path, cause: error });
}
