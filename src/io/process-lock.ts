import { closeSync, constants, openSync } from 'node:fs';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import { EAGAIN } from '../native/errno.ts';
import { sharedIoQueue } from '../native/io-queue.ts';

/** A file whose lock says that a program of a kind runs. The system takes it back when the process ends, however that happens. */
export class ProcessLock {
  #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * Takes the lock; it keeps out programs that lock the whole file, or its first byte, for writing.
   *
   * @throws {LunetteError} LOCKED when another process has it; ACCESS and others when the file cannot be made
   */
  static async take(path: string): Promise<ProcessLock> {
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    } catch (error) {
      throw fromSystemError(error, 'opening the lock file', { path });
    }
    const { operations } = sharedIoQueue();
    const mine = await sharedIoQueue().range(operations.lock, fd, 0, 1);
    const others = mine < 0 ? mine : await sharedIoQueue().range(operations.testLock, fd, 0, 1);
    if (others === 0) return new ProcessLock(fd);
    closeSync(fd);
    const who = others > 1 ? ` (process ${others - 1})` : '';
    if (others > 0 || others === EAGAIN)
      throw new LunetteError('LOCKED', `another program holds this lock${who}`, { path });
    throw new LunetteError('IO', 'the file takes no locks', { path });
  }

  /** Safe to call twice. */
  release(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}
