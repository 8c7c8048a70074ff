import { constants, mkdirSync, readdirSync, rmdirSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import type { Step } from './step.ts';

/**
 * Makes changes to the kernel target's configuration, and takes back what it made. Every call may block for as long as the kernel
 * likes: this runs in a process of its own.
 */
export class ConfigTree {
  readonly root: string;
  /** What has been made, oldest first. */
  readonly #done: Step[] = [];

  /** @param root of the target's configfs, `/sys/kernel/config/target` */
  constructor(root: string) {
    this.root = root;
  }

  /** @throws {LunetteError} naming the attribute and what the kernel said; what was made before stays until undo() */
  run(steps: Iterable<Step>): void {
    for (const step of steps) {
      try {
        this.#apply(step);
      } catch (error) {
        throw failure(join(this.root, step.path), step, error as NodeJS.ErrnoException);
      }
    }
  }

  /** Takes back everything that run() made, in reverse. Goes on when something cannot be taken back. @returns what is left, in words */
  undo(): string[] {
    const left: string[] = [];
    for (let step = this.#done.pop(); step !== undefined; step = this.#done.pop()) {
      const path = join(this.root, step.path);
      try {
        this.#revert(step, path);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // Somebody else has taken it away, or uses the shared one.
        if (code === 'ENOENT' || (step.act === 'mkdir' && step.shared === true && code === 'ENOTEMPTY')) continue;
        left.push(`${path} (${code})`);
      }
    }
    return left;
  }

  /** The lowest directory `core/user_N` that nobody has; made, and counted as made by run(). */
  claimHba(): string {
    for (let index = this.#lowestIndex(); ; index++) {
      const path = `core/user_${index}`;
      try {
        mkdirSync(join(this.root, path));
        this.#done.push({ act: 'mkdir', path });
        return path;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
          throw failure(join(this.root, path), { act: 'mkdir', path }, error as NodeJS.ErrnoException);
        }
      }
    }
  }

  /** rtslib counts over the backstores of all kinds. */
  #lowestIndex(): number {
    const taken = new Set<number>();
    for (const name of readdirSync(join(this.root, 'core'))) {
      const found = /_(\d+)$/.exec(name);
      if (found !== null) taken.add(Number(found[1]));
    }
    let index = 0;
    while (taken.has(index)) index++;
    return index;
  }

  #apply(step: Step): void {
    const path = join(this.root, step.path);
    switch (step.act) {
      case 'mkdir':
        try {
          mkdirSync(path);
        } catch (error) {
          if (step.shared !== true || (error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
          return;
        }
        break;
      case 'link':
        symlinkSync(join(this.root, step.target), path);
        break;
      default:
        try {
          writeAttribute(path, step.value);
        } catch (error) {
          if (step.optional !== true || (error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
        }
    }
    this.#done.push(step);
  }

  #revert(step: Step, path: string): void {
    if (step.act === 'mkdir') rmdirSync(path);
    else if (step.act === 'link') unlinkSync(path);
    else if (step.undo !== undefined) writeAttribute(path, step.undo);
  }
}

/** Some cannot be read. All exist: a file that is made by mistake would change nothing, silently. */
function writeAttribute(path: string, value: string): void {
  writeFileSync(path, value, { flag: constants.O_WRONLY as unknown as string });
}

function failure(path: string, step: Step, error: NodeJS.ErrnoException): LunetteError {
  const { code = 'EIO' } = error;
  const what = { mkdir: 'cannot be made', link: 'cannot be linked', write: 'does not take what is written to it' }[
    step.act
  ];
  const [known, help] = HELP[code] ?? ['IO', undefined];
  return new LunetteError(known, `${what} (${code})`, { path, help: helpFor(step, code) ?? help, cause: error });
}

const HELP: Readonly<Record<string, readonly ['EXISTS' | 'ACCESS' | 'UNAVAILABLE' | 'LOCKED', string]>> = {
  EEXIST: ['EXISTS', 'Something of that name is configured already: choose another name, or remove it with targetcli.'],
  EACCES: ['ACCESS', 'Configuring the kernel target needs root.'],
  EPERM: ['ACCESS', 'Configuring the kernel target needs root.'],
  EADDRINUSE: ['LOCKED', 'Another target listens on that address: choose another port.'],
  EBUSY: ['LOCKED', 'The kernel is busy with it: try again.'],
};

function helpFor(step: Step, code: string): string | undefined {
  const top = step.path.split('/')[0];
  if (code === 'ENOENT' && dirname(step.path) !== '.' && (top === 'iscsi' || top === 'loopback')) {
    const module = top === 'iscsi' ? 'iscsi_target_mod' : 'tcm_loop';
    return `Load the module: modprobe ${module}`;
  }
  if (step.path.endsWith('/enable') && top === 'core') {
    return 'The daemon that serves TCMU devices refused it: its log says why.';
  }
  return undefined;
}
