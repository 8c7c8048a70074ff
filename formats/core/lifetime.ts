import { LunetteError } from './errors.ts';

/**
 * Counts the work in flight on a resource, refuses work after close, and runs the release once when the last has ended.
 *
 * Work that completes in the tick it began in need not enter: nothing can come between.
 */
export class Lifetime {
  #inFlight = 0;
  #closing: Promise<void> | undefined;
  #idle: (() => void) | undefined;
  readonly #what: string;

  /** @param what names the resource in the CLOSED error */
  constructor(what: string) {
    this.#what = what;
  }

  get closed(): boolean {
    return this.#closing !== undefined;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Begins a piece of work. @throws {LunetteError} CLOSED */
  enter(): void {
    if (this.#closing !== undefined) throw new LunetteError('CLOSED', `${this.#what} is closed`);
    this.#inFlight++;
  }

  /** Ends a piece of work that entered. */
  leave(): void {
    this.#inFlight--;
    if (this.#inFlight === 0) this.#idle?.();
  }

  /** Refuses new work, waits for what is in flight, then releases. A second call gets the first one's promise. */
  close(release: () => Promise<void> | void): Promise<void> {
    this.#closing ??= this.#finish(release);
    return this.#closing;
  }

  async #finish(release: () => Promise<void> | void): Promise<void> {
    // Let the caller store this promise first: from then on enter() refuses.
    await Promise.resolve();
    if (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    await release();
  }
}
