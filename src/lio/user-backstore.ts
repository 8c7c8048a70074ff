import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, LunetteError } from '../../formats/core/errors.ts';

export const TARGET_ROOT = '/sys/kernel/config/target';

const ANNOUNCE_MS = 30_000;

/** What the kernel names a device by, in UIO and netlink: `tcm-user/HBA/NAME/CONFIG`. */
export interface BackstoreName {
  readonly hba: number;
  readonly name: string;
  /** `HANDLER/IMAGE…`; empty when nobody has set it. */
  readonly config: string;
}

/** Undefined when it is no name of a TCMU device. */
export function parseBackstoreName(text: string): BackstoreName | undefined {
  const match = /^tcm-user\/(\d+)\/([^/]+)(?:\/(.*))?$/s.exec(text);
  if (match === null) return undefined;
  const [, hba = '', name = '', config = ''] = match;
  return { hba: Number(hba), name, config };
}

/** `HBA/NAME`. */
export function keyOf({ hba, name }: Pick<BackstoreName, 'hba' | 'name'>): string {
  return `${hba}/${name}`;
}

/**
 * A user backstore in configfs: `core/user_HBA/NAME`.
 *
 * Nothing here waits for an answer of ours: what does (enable, dev_size, dev_config, emulate_write_cache, rmdir) is for other processes.
 */
export class UserBackstore {
  readonly path: string;
  readonly hba: number;
  readonly name: string;
  /** `HBA/NAME`. */
  readonly key: string;

  constructor(name: Pick<BackstoreName, 'hba' | 'name'>, root = TARGET_ROOT) {
    this.hba = name.hba;
    this.name = name.name;
    this.key = keyOf(name);
    this.path = join(root, 'core', `user_${name.hba}`, name.name);
  }

  /** An attribute as a number; undefined when this kernel has none of the name. */
  async attribute(name: string): Promise<number | undefined> {
    const text = await this.#read(`attrib/${name}`);
    return text === undefined ? undefined : Number(text);
  }

  async setAttribute(name: string, value: number): Promise<void> {
    await writeFile(join(this.path, 'attrib', name), String(value));
  }

  /**
   * Writes an attribute about which the kernel asks whoever serves the device, and waits for the answer: so another process writes.
   *
   * @throws {LunetteError} IO when the kernel or the server of the device refuses
   */
  async announce(name: string, value: string): Promise<void> {
    const path = join(this.path, 'attrib', name);
    await new Promise<void>((resolve, reject) => {
      execFile(
        '/bin/sh',
        ['-c', 'printf %s "$1" >"$2"', 'sh', value, path],
        { timeout: ANNOUNCE_MS },
        (error, _out, text) => {
          if (error === null) resolve();
          else reject(new LunetteError('IO', `the kernel did not take ${value}: ${text.trim()}`, { path }));
        },
      );
    });
  }

  /** The serial number that was given to it; undefined when none was. */
  async unitSerial(): Promise<string | undefined> {
    const text = await this.#read('wwn/vpd_unit_serial');
    const serial = text?.slice(text.indexOf(':') + 1).trim();
    return serial === undefined || serial === '' ? undefined : serial;
  }

  /** What netlink knows it by. */
  async deviceId(): Promise<number | undefined> {
    const text = await this.#read('statistics/scsi_dev/indx');
    return text === undefined ? undefined : Number(text);
  }

  /** New commands are answered BUSY, or no more. */
  block(blocked: boolean): Promise<boolean> {
    return this.#act('block_dev', blocked ? 1 : 0);
  }

  /** Empties the ring; what was in flight is answered BUSY, and comes again. */
  resetRing(): Promise<boolean> {
    return this.#act('reset_ring', 1);
  }

  /** @returns false for a device that is not enabled yet: whoever enables it waits for our answer */
  async #act(action: string, value: number): Promise<boolean> {
    try {
      await writeFile(join(this.path, 'action', action), String(value));
      return true;
    } catch (error) {
      if (errnoOf(error) === 'EINVAL') return false;
      throw error;
    }
  }

  async #read(name: string): Promise<string | undefined> {
    try {
      return (await readFile(join(this.path, name), 'utf8')).trim();
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return undefined;
      throw error;
    }
  }
}
