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
    return new Promise((resolve, reject) => {
      if (this.#error === undefined) this.#waiting.add(reject);
      else reject(this.#error);
      const timer = setTimeout(() => {
        this.#waiting.delete(reject);
        reject(late());
      }, ms);
      work.then(resolve, reject).finally(() => {
        clearTimeout(timer);
        this.#waiting.delete(reject);
      });
    });
  }
}
