import { formatSize } from '../../formats/core/units.ts';
import type { CliContext, Output } from './context.ts';
import { oneLine } from './exit.ts';
import type { CommonOptions } from './output.ts';

/** Options of commands that show how far they are. */
export interface ProgressOptions extends CommonOptions {
  /** `-p`. */
  readonly progress?: boolean | undefined;
}

export interface ProgressSettings {
  /** What is being done, in front of the bar: one or two words. */
  readonly label?: string | undefined;
  /** Bytes that there are to do; undefined when nobody knows. */
  readonly total?: number | undefined;
  /** Milliseconds, from any origin. Default: performance.now. */
  readonly now?: (() => number) | undefined;
}

/** Where a long-running command says how far it is. */
export interface Progress {
  /** Bytes done so far. Cheap: printing happens by the clock. */
  update(done: number, total?: number): void;
  /** Shows the last figure and ends the line. Also after a failure; safe to call twice. */
  end(): void;
}

const TERMINAL_INTERVAL_MS = 100;
const LINE_INTERVAL_MS = 1000;
/** Speed is that of the last seconds: what the start was like does not say when the end will come. */
const WINDOW_MS = 8000;
const DEFAULT_COLUMNS = 80;

const SILENT: Progress = { update: () => undefined, end: () => undefined };

/**
 * The progress of one command: on a terminal a bar with bytes, speed and time left, else a line a second. Nothing without -p, and
 * nothing with -q.
 *
 * It goes to stdout as that of qemu-img, and has its `(12.34/100%)` in it, which programs look for; to stderr where JSON is printed.
 */
export function createProgress(
  context: CliContext,
  options: ProgressOptions & { readonly json?: boolean | undefined },
  settings: ProgressSettings = {},
): Progress {
  if (options.progress !== true || options.quiet === true) return SILENT;
  return new ClockedProgress(options.json === true ? context.stderr : context.stdout, settings);
}

class ClockedProgress implements Progress {
  readonly #output: Output;
  readonly #label: string;
  readonly #now: () => number;
  readonly #timer: NodeJS.Timeout;
  readonly #start: number;
  readonly #samples: { readonly at: number; readonly done: number }[];
  #total: number | undefined;
  #done = 0;
  #shown = 0;
  #ended = false;

  constructor(output: Output, { label, total, now = () => performance.now() }: ProgressSettings) {
    this.#output = output;
    this.#label = label === undefined ? '' : oneLine(label);
    this.#total = total;
    this.#now = now;
    this.#start = now();
    this.#samples = [{ at: this.#start, done: 0 }];
    this.#timer = setInterval(() => this.#tick(), this.#interval);
    this.#timer.unref();
  }

  get #interval(): number {
    return this.#output.isTerminal ? TERMINAL_INTERVAL_MS : LINE_INTERVAL_MS;
  }

  update(done: number, total?: number): void {
    this.#done = done;
    if (total !== undefined) this.#total = total;
    // The event loop may be busy: the timer alone would come too seldom.
    if (this.#now() - this.#shown >= this.#interval) this.#tick();
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#timer);
    this.#show(true);
    if (this.#output.isTerminal) this.#output.write('\n');
  }

  #tick(): void {
    if (!this.#ended && this.#now() - this.#start >= this.#interval) this.#show(false);
  }

  #show(last: boolean): void {
    const now = this.#now();
    this.#shown = now;
    this.#samples.push({ at: now, done: this.#done });
    while (this.#samples.length > 2 && now - (this.#samples[1] as { at: number }).at > WINDOW_MS) this.#samples.shift();
    const first = last ? { at: this.#start, done: 0 } : (this.#samples[0] as { at: number; done: number });
    const seconds = (now - first.at) / 1000;
    const speed = seconds > 0 ? (this.#done - first.done) / seconds : undefined;
    const facts = {
      label: this.#label,
      done: this.#done,
      total: this.#total,
      speed,
      seconds: (now - this.#start) / 1000,
    };
    if (this.#output.isTerminal) {
      // Back to the start of the line, and what a longer one has left is wiped away.
      this.#output.write(`\r${progressBar(facts, last, this.#output.columns ?? DEFAULT_COLUMNS)}\x1b[K`);
    } else {
      this.#output.write(`${progressLine(facts, last)}\n`);
    }
  }
}

export interface ProgressFacts {
  readonly label: string;
  readonly done: number;
  readonly total: number | undefined;
  /** Bytes per second. */
  readonly speed: number | undefined;
  /** Since the start. */
  readonly seconds: number;
}

/** `copying (12.34/100%) 1.2 GiB of 9.7 GiB, 310 MiB/s, 0:27 left`. At the end: how long it took in place of what is left. */
export function progressLine(facts: ProgressFacts, last: boolean): string {
  return [facts.label, percentText(facts), figures(facts, last)].filter((part) => part !== '').join(' ');
}

/** The same with a bar that fills what is left of the line; narrow terminals get less. Never longer than columns - 1. */
export function progressBar(facts: ProgressFacts, last: boolean, columns: number): string {
  const head = [facts.label, percentText(facts)].filter((part) => part !== '').join(' ');
  const tail = figures(facts, last);
  const room = columns - 1 - head.length - tail.length - 4;
  if (facts.total === undefined || room < 6) return `${head} ${tail}`.trim().slice(0, Math.max(columns - 1, 0));
  const width = Math.min(room, 40);
  const filled = Math.round(width * shareOf(facts));
  const bar = '='.repeat(Math.max(filled - 1, 0)) + (filled > 0 ? (filled === width ? '=' : '>') : '');
  return `${head} [${bar.padEnd(width)}] ${tail}`;
}

function shareOf({ done, total }: ProgressFacts): number {
  if (total === undefined) return 0;
  return total === 0 ? 1 : Math.min(done / total, 1);
}

function percentText(facts: ProgressFacts): string {
  if (facts.total === undefined) return '';
  // Down: 100 % is said only when it is all done.
  return `(${(Math.floor(shareOf(facts) * 10_000) / 100).toFixed(2).padStart(5)}/100%)`;
}

function figures({ done, total, speed, seconds }: ProgressFacts, last: boolean): string {
  const parts = [total === undefined || last ? formatSize(done) : `${formatSize(done)} of ${formatSize(total)}`];
  if (speed !== undefined && Number.isFinite(speed)) parts.push(`${formatSize(Math.round(speed))}/s`);
  if (last) parts.push(durationText(seconds));
  else if (total !== undefined && speed !== undefined && speed > 0) {
    parts.push(`${durationText((total - Math.min(done, total)) / speed)} left`);
  }
  return parts.join(', ');
}

/** `0:07`, `12:34`, `3:04:05`; long ones in days. */
export function durationText(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (!Number.isFinite(whole) || whole >= 100 * 86_400) return 'more than 99 days';
  const two = (value: number): string => String(value).padStart(2, '0');
  const hours = Math.floor(whole / 3600);
  if (hours >= 48) return `${Math.floor(hours / 24)} days ${hours % 24} h`;
  const minutes = Math.floor(whole / 60) % 60;
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
