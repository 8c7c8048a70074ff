/**
 * Work that never runs twice at once: those who ask while it runs share the next turn, which begins afterwards.
 *
 * A turn is whole or light; one that somebody wants whole is whole for all who share it.
 */
export class Turns {
  readonly #work: (whole: boolean) => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #nextWhole = false;

  constructor(work: (whole: boolean) => Promise<void>) {
    this.#work = work;
  }

  /** The turn that is running now. */
  get running(): Promise<void> | undefined {
    return this.#running;
  }

  /** Resolves, or rejects, with a turn that began in this call or later. */
  ask(whole: boolean): Promise<void> {
    if (this.#running === undefined) {
      this.#running = this.#work(whole).finally(() => {
        this.#running = undefined;
      });
      return this.#running;
    }
    this.#nextWhole ||= whole;
    this.#next ??= this.#running
      .catch(() => undefined)
      .then(() => {
        const asked = this.#nextWhole;
        this.#next = undefined;
        this.#nextWhole = false;
        return this.ask(asked);
      });
    return this.#next;
  }
}
