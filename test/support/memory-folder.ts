import { accessSync, constants, statfsSync } from 'node:fs';

const TMPFS = 0x01021994;

/** A folder on a file system in memory where tests may make files; undefined when there is none. */
export const memoryFolder: string | undefined = find();

function find(): string | undefined {
  try {
    accessSync('/dev/shm', constants.W_OK);
    return statfsSync('/dev/shm').type === TMPFS ? '/dev/shm' : undefined;
  } catch {
    return undefined;
  }
}
