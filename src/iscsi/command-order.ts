import type { SequenceNumbers } from './pdu-writer.ts';

/** A command that has come: run when its turn is there. */
export interface Deliverable {
  deliver(): void;
}

const NOTHING: Deliverable = { deliver: () => {} };

/** Puts non-immediate commands into CmdSN order (RFC 7143 section 4.2.2.1). Those that come early wait for the holes to fill. */
export class CommandOrder {
  readonly #numbers: SequenceNumbers;
  readonly #early = new Map<number, Deliverable>();

  constructor(numbers: SequenceNumbers) {
    this.#numbers = numbers;
  }

  /** True for a command to be taken; false for one outside the window or already here, which is ignored without a word. */
  takes(cmdSN: number): boolean {
    if (cmdSN === this.#numbers.expCmdSN) return true;
    return this.#numbers.inWindow(cmdSN) && !this.#early.has(cmdSN);
  }

  /** Delivers a command in its turn: now, with all that waited for it, or later. */
  arrive(cmdSN: number, command: Deliverable): void {
    const numbers = this.#numbers;
    if (cmdSN !== numbers.expCmdSN) {
      this.#early.set(cmdSN, command);
      return;
    }
    numbers.expCmdSN = (cmdSN + 1) >>> 0;
    command.deliver();
    while (this.#early.size > 0) {
      const next = this.#early.get(numbers.expCmdSN);
      if (next === undefined) break;
      this.#early.delete(numbers.expCmdSN);
      numbers.expCmdSN = (numbers.expCmdSN + 1) >>> 0;
      next.deliver();
    }
  }

  /** Counts a command as received that was aborted before it came. False when it has been received. */
  plug(cmdSN: number): boolean {
    if (!this.#numbers.inWindow(cmdSN) || this.#early.has(cmdSN)) return false;
    this.arrive(cmdSN, NOTHING);
    return true;
  }
}
