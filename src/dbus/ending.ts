/**
 * The end of something that others wait in. Not a race with a promise that rejects then: such a promise keeps something of each race until
 * it settles, and a connection can last for years.
 */
export class Ending {
  readonly #waiting = new Set<(error: Error) => void>();
  #error: Error | undefined;

  /** Whoever waits now. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** It has ended: whoever waits hears so, and whoever comes later. Only the first reason counts. */
  end(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    for (const reject of this.#waiting) reject(error);
    this.#waiting.clear();
  }

  /**
   * What `work` comes to, if that is before the end, and within `ms` milliseconds.
   *
   * @throws {Error} what it throws; why it has ended; `late` when it takes longer
   */
  before<T>(work: Promise<T>, ms: number, late: () => Error): Promise<T> {
    if (this.#error !== undefined) {
      work.catch(() => undefined);
      return Promise.reject(this.#error);
    }
    return new Promise((resolve, reject) => {
      const settled = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(fail);
      };
      const fail = (error: Error): void => {
        // Work that the end has overtaken may never settle: nothing of ours may wait for that, nor keep the process alive.
        settled();
        reject(error);
      };
      const timer = setTimeout(() => fail(late()), ms);
      this.#waiting.add(fail);
      work.then((value) => {
        settled();
        resolve(value);
      }, fail);
    });
  }
}
