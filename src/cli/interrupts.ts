/** Signals that ask a long-running command to end. */
export interface Interrupts {
  /**
   * Calls back at the first SIGINT, SIGTERM or SIGHUP (the terminal is gone). From then on a second one ends the process at once.
   *
   * @returns a function that stops listening
   */
  once(listener: (signal: string) => void): () => void;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** The shell's convention for a program that a signal ended. */
const STATUS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** The signals of this process. They keep their default action until somebody listens. */
export function processInterrupts(): Interrupts {
  return {
    once(listener) {
      let seen = false;
      const handle = (signal: (typeof SIGNALS)[number]): void => {
        if (seen) process.exit(STATUS[signal]);
        seen = true;
        listener(signal);
      };
      for (const signal of SIGNALS) process.on(signal, handle);
      return () => {
        for (const signal of SIGNALS) process.off(signal, handle);
      };
    },
  };
}
