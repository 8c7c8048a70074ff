/**
 * Locks that QEMU's programs honour: byte ranges of the image file, locked by open file description.
 *
 * Byte 100 + i locked means "I do i", byte 200 + i "nobody else may do i", for i: 0 read consistently, 1 write, 2 write what is there
 * already, 3 resize. All locks are read locks, which never conflict; a holder takes its bytes first and then asks whether somebody else
 * holds an opposite one. (Layout as observed in /proc/locks under qemu-img, qemu-io and qemu-nbd 7.2.)
 */

import { setTimeout as pause } from 'node:timers/promises';
import { ImageError } from '../core/errors.ts';
import { findHolder, type Holder } from './lock-holders.ts';
import type { OpenFile } from './open-file.ts';
import type { LockMode } from './storage.ts';

const DOES = 100;
const DENIES = 200;
const READ = 0;
const WRITE = 1;
const RESIZE = 3;

/** How often a writer sees another one that stays before it gives way. */
const LOOKS = 3;
/** How often it tries again after others that were there for a moment only. */
const TRIES = 12;
/** Milliseconds, the longest of the first ones. They grow. */
const PAUSE = 60;
const LONGEST_PAUSE = 500;

interface LockPlan {
  /** What the holder does. */
  readonly does: readonly number[];
  /** What nobody else may do. */
  readonly denies: readonly number[];
}

const PLANS: Readonly<Record<LockMode, LockPlan>> = {
  write: { does: [READ, WRITE, RESIZE], denies: [WRITE, RESIZE] },
  read: { does: [READ], denies: [WRITE, RESIZE] },
  backing: { does: [READ], denies: [] },
  shared: { does: [READ], denies: [] },
  none: { does: [], denies: [] },
};

/** One change of byte locks: all of it, or nothing of it. */
export interface LockChange {
  /** Bytes to take. */
  readonly take: readonly number[];
  /** Bytes that no other open file description may hold, looked at after taking. */
  readonly test: readonly number[];
  /** Bytes to give back when all is well. */
  readonly release: readonly number[];
}

export type LockOutcome =
  | { readonly kind: 'done' }
  /** Locks are as they should be, but others cannot see them or we cannot see theirs. */
  | { readonly kind: 'partial'; readonly why: string }
  /** Somebody else holds `byte`; what was taken has been given back. `pid` is known for POSIX locks only. */
  | { readonly kind: 'conflict'; readonly byte: number; readonly pid?: number };

/** Who makes the system calls: the addon, or what there is without it. */
export interface ByteLocker {
  change(file: OpenFile, change: LockChange): Promise<LockOutcome>;
}

/** The locks that one open file holds. */
export class ImageLock {
  /** Why other programs may not see our locks or we theirs, as a sentence for a warning; undefined when all is well. */
  notice: string | undefined;
  readonly #file: OpenFile;
  readonly #locker: ByteLocker;
  #held: readonly number[] = [];
  #last: Promise<void> = Promise.resolve();

  constructor(file: OpenFile, locker: ByteLocker) {
    this.#file = file;
    this.#locker = locker;
  }

  /**
   * Changes to `mode`; what the old and the new mode have in common is held all the time. After an error the old locks are held.
   * @throws {ImageError} LOCKED, naming the other holder where /proc shows it
   */
  set(mode: LockMode): Promise<void> {
    const done = this.#last.then(() => this.#set(mode));
    this.#last = done.catch(() => {});
    return done;
  }

  async #set(mode: LockMode): Promise<void> {
    const plan = PLANS[mode];
    const wanted = [...plan.does.map((i) => DOES + i), ...plan.denies.map((i) => DENIES + i)];
    const change: LockChange = {
      take: wanted.filter((byte) => !this.#held.includes(byte)),
      test: mode === 'shared' ? [] : [...plan.does.map((i) => DENIES + i), ...plan.denies.map((i) => DOES + i)],
      release: this.#held.filter((byte) => !wanted.includes(byte)),
    };
    let outcome = await this.#locker.change(this.#file, change);
    if (outcome.kind === 'conflict' && mode === 'write') outcome = await this.#tryAgain(change, outcome);
    if (outcome.kind === 'conflict') {
      // Whoever reads whatever others do is not to be stopped by them.
      if (mode === 'shared') return;
      throw await this.#conflict(outcome.byte, outcome.pid);
    }
    this.#held = wanted;
    this.notice = outcome.kind === 'partial' ? outcome.why : undefined;
  }

  /**
   * Two that begin at the same moment see each other's bytes, and both give theirs back. So who writes waits a moment of its own and looks without
   * taking anything, which is in nobody's way: it gives way to those that stay.
   */
  async #tryAgain(change: LockChange, first: LockOutcome): Promise<LockOutcome> {
    const look: LockChange = { take: [], test: change.test, release: [] };
    let outcome = first;
    for (let i = 0, seen = 0; i < TRIES && seen < LOOKS && outcome.kind === 'conflict'; i++) {
      await pause(10 + Math.random() * Math.min(LONGEST_PAUSE, PAUSE * 2 ** (i - seen)));
      outcome = await this.#locker.change(this.#file, look);
      if (outcome.kind === 'conflict') seen++;
      else outcome = await this.#locker.change(this.#file, change);
    }
    return outcome;
  }

  async #conflict(byte: number, pid: number | undefined): Promise<ImageError> {
    const { path } = this.#file;
    const holder = await findHolder(this.#file, byte, pid);
    return new ImageError('LOCKED', `${path} is in use: ${holderText(holder)}`, {
      path,
      help: 'Stop it, or read with -U',
    });
  }
}

/** `held by qemu-nbd (pid 1234), which writes it`. */
function holderText(holder: Holder | undefined): string {
  if (holder === undefined) return 'another program that is not visible from here holds it';
  const does = holder.bytes.includes(DOES + WRITE) ? ', which writes it' : ', which reads it';
  if (holder.pid === process.pid) return `this program has it open already${does}`;
  return `held by ${holder.name} (pid ${holder.pid})${does}`;
}
