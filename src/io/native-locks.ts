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
    const call = (operation: number, byte: number): Promise<number> => this.#queue.range(operation, file.fd, byte, 1);
    // Together: each way to a thread and back takes longer than the call.
    const all = (operation: number, bytes: readonly number[]): Promise<number[]> =>
      Promise.all(bytes.map((byte) => call(operation, byte)));

    const results = await all(operations.lock, change.take);
    const undo = async (outcome: LockOutcome): Promise<LockOutcome> => {
      const taken = change.take.filter((_, i) => (results[i] as number) >= 0);
      await all(operations.unlock, taken);
      return outcome;
    };
    for (const [i, result] of results.entries()) {
      if (result === EAGAIN) return undo({ kind: 'conflict', byte: change.take[i] as number });
      if (result < 0) return undo(unavailable(result));
    }
    // All are taken by now: of two that open it at once, at least one sees the other.
    for (const [i, result] of (await all(operations.testLock, change.test)).entries()) {
      const byte = change.test[i] as number;
      if (result < 0) return undo(unavailable(result));
      if (result > 0) return undo({ kind: 'conflict', byte, ...(result > 1 ? { pid: result - 1 } : {}) });
    }
    await all(operations.unlock, change.release);
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
