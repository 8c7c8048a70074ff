/** Work that never runs twice at once: asked for while it runs, it runs once more afterwards, however often that was. */
export class Coalesced {
  readonly #work: (why: string) => Promise<void>;
  #running = false;
  #next: string | undefined;

  /** @param work must not fail */
  constructor(work: (why: string) => Promise<void>) {
    this.#work = work;
  }

  /** @param why of several asked for meanwhile the last one is heard */
  async ask(why: string): Promise<void> {
    this.#next = why;
    if (this.#running) return;
    this.#running = true;
    try {
      for (let next: string | undefined = why; next !== undefined; next = this.#next) {
        this.#next = undefined;
        await this.#work(next);
      }
    } finally {
      this.#running = false;
    }
  }
}
