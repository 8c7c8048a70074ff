/** One at a time, in the order of asking: what changes tables and must read some of them first. */
export class Mutex {
  #held = false;
  readonly #waiting: (() => void)[] = [];

  async run<T>(act: () => Promise<T> | T): Promise<T> {
    if (this.#held) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#held = true;
    try {
      return await act();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#held = false;
      else next(); // handed over: it stays held
    }
  }
}
