import { fromSystemError } from '../../formats/core/errors.ts';
import { reportError } from './exit.ts';
import { type Interrupts, processInterrupts } from './interrupts.ts';

/** Where a command's text goes. */
export interface Output {
  write(text: string): void;
  /** Takes bytes as they are; resolves when they are on their way. Absent where only text goes. */
  writeBytes?(bytes: Uint8Array): Promise<void>;
  readonly isTerminal: boolean;
  /** Width of the terminal, characters; undefined where it is none. */
  readonly columns?: number | undefined;
}

/**
 * What a command has of the world: output, environment, signals. Commands touch neither console nor process, so that tests run
 * them in-process.
 */
export interface CliContext {
  /** Human output and JSON. */
  readonly stdout: Output;
  /** Everything else: errors, warnings, logs, hints. */
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** SIGINT, SIGTERM and SIGHUP. */
  readonly interrupts: Interrupts;
  /** True for root: state goes to the system's directories. */
  readonly privileged: boolean;
}

/** The context of the real process, which can say whether something it was to write was lost. */
export function processContext(): CliContext & { readonly lost: boolean } {
  let lost = false;
  const stderr = streamOutput(
    () => process.stderr,
    MAX_LOG_BACKLOG,
    () => undefined,
  );
  // A server goes on without its output: its disks are worth more. Everybody hears of it at the end, by the status.
  const stdout = streamOutput(
    () => process.stdout,
    Number.POSITIVE_INFINITY,
    (error) => {
      if (!lost) stderr.write(`lunette: ${reportError(fromSystemError(error, WRITING)).text}\n`);
      lost = true;
    },
  );
  return {
    stdout,
    stderr,
    env: process.env,
    interrupts: processInterrupts(),
    privileged: process.geteuid?.() === 0,
    get lost() {
      return lost;
    },
  };
}

const WRITING = 'writing to stdout';
/** Log lines that nobody reads are dropped above this, bytes: a full pipe must not cost memory without end. */
const MAX_LOG_BACKLOG = 1024 * 1024;

/**
 * @param open gives the stream. Called when something of it is asked for: Node takes its time to make one, and many commands say nothing
 * @param onLost is told of an error that no caller was told of
 */
function streamOutput(open: () => NodeJS.WriteStream, maxBacklog: number, onLost: (error: Error) => void): Output {
  let opened: NodeJS.WriteStream | undefined;
  let told: Error | undefined;
  const stream = (): NodeJS.WriteStream => {
    if (opened !== undefined) return opened;
    opened = open();
    // A reader that has gone away (lunette info … | head -1) is no reason for a word.
    opened.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE' && error !== told) onLost(error);
    });
    return opened;
  };
  return {
    write(text) {
      if (stream().writableLength < maxBacklog) stream().write(text);
    },
    writeBytes: (bytes) =>
      new Promise((resolve, reject) => {
        stream().write(bytes, (error) => {
          if (!error) return resolve();
          told = error;
          reject(fromSystemError(error, WRITING));
        });
      }),
    get isTerminal() {
      return stream().isTTY === true;
    },
    get columns() {
      return stream().isTTY === true ? stream().columns : undefined;
    },
  };
}
