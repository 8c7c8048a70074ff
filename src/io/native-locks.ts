import type { ByteLocker, LockChange, LockOutcome } from '../../formats/storage/image-lock.ts';
import type { OpenFile } from '../../formats/storage/open-file.ts';
import { EAGAIN, systemError } from '../native/errno.ts';
import type { IoQueue } from '../native/io-queue.ts';

/** Byte-range locks by the addon, on the I/O queue: on network file systems they wait for a server. */
export class NativeLocker implements ByteLocker {
  readonly #queue: IoQueue;

  constructor(queue: IoQueue) {
    this.#queue = queue;
  }

  async change(file: OpenFile, change: LockChange): Promise<LockOutcome> {
    const { operations } = this.#queue;
    const taken: number[] = [];
    const call = (operation: number, byte: number): Promise<number> => this.#queue.range(operation, file.fd, byte, 1);
    const undo = async (outcome: LockOutcome): Promise<LockOutcome> => {
      for (const byte of taken) await call(operations.unlock, byte);
      return outcome;
    };

    for (const byte of change.take) {
      const result = await call(operations.lock, byte);
      if (result === EAGAIN) return undo({ kind: 'conflict', byte });
      if (result < 0) return undo(unavailable(result));
      taken.push(byte);
    }
    for (const byte of change.test) {
      const result = await call(operations.testLock, byte);
      if (result < 0) return undo(unavailable(result));
      if (result > 0) return undo({ kind: 'conflict', byte, ...(result > 1 ? { pid: result - 1 } : {}) });
    }
    for (const byte of change.release) await call(operations.unlock, byte);
    return { kind: 'done' };
  }
}

/** Kernels before 3.15, file systems without locks. */
function unavailable(result: number): LockOutcome {
  return {
    kind: 'partial',
    why: `this file system takes no image locks (${systemError(result, 'fcntl').message}): nothing keeps other programs from writing`,
  };
}
