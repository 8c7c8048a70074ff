const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
export type InterruptSignal = (typeof SIGNALS)[number];

/** Signals that ask a long-running command to end. */
export interface Interrupts {
  /** Whether one of them has come that somebody listened to. */
  readonly seen?: boolean;
  /**
   * Calls back at the first of the signals: SIGINT, SIGTERM and SIGHUP (the terminal is gone) unless others are named. From then on a second one ends the process at once.
   *
   * @returns a function that stops listening
   */
  once(listener: (signal: string) => void, signals?: readonly InterruptSignal[]): () => void;
}

/** The shell's convention for a program that a signal ended. */
const STATUS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** The signals of this process. They keep their default action until somebody listens. */
export function processInterrupts(): Interrupts {
  let any = false;
  return {
    get seen() {
      return any;
    },
    once(listener, signals = SIGNALS) {
      let seen = false;
      const handle = (signal: InterruptSignal): void => {
        if (seen) process.exit(STATUS[signal]);
        seen = true;
        any = true;
        listener(signal);
      };
      for (const signal of signals) process.on(signal, handle);
      return () => {
        for (const signal of signals) process.off(signal, handle);
      };
    },
  };
}
