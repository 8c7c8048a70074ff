import { availableParallelism } from 'node:os';
import type { Worker } from 'node:worker_threads';
import { LunetteError } from '../../formats/core/errors.ts';
import type { Compression, EncodedUnit } from '../../formats/index.ts';
import { canPack } from '../io/native-pack.ts';
import type { EncodeAnswer, EncodeRequest, EncoderSetup } from './encoder-worker.ts';
import { NativeEncoder } from './native-encoder.ts';
import { startWorker } from './start-worker.ts';

/** Compresses units of a disk on other cores. */
export interface UnitEncoder {
  /** Bytes of a unit. */
  readonly unit: number;
  /**
   * Compresses the units in the first `length` bytes of a buffer, of which the last may be shorter. The buffer must stay as it is until that is
   * done.
   */
  encode(buffer: Uint8Array, length: number): Promise<EncodedUnits>;
  close(): Promise<void>;
}

export interface EncodedUnits {
  readonly units: readonly EncodedUnit[];
  /** Gives the memory of the units back. */
  release(): void;
}

/** @param compression of an image that is written. @returns native code where that can do it, else worker threads */
export function startEncoder(compression: Compression): UnitEncoder {
  return canPack(compression.packing.form) ? new NativeEncoder(compression) : new WorkerEncoder(compression);
}

interface Job {
  readonly request: EncodeRequest;
  readonly resolve: (units: EncodedUnits) => void;
  readonly reject: (error: unknown) => void;
}

/** Worker threads that each compress one buffer at a time. */
export class WorkerEncoder implements UnitEncoder {
  readonly unit: number;
  readonly #setup: EncoderSetup;
  readonly #most: number;
  readonly #workers: Worker[] = [];
  readonly #idle: Worker[] = [];
  readonly #busy = new Map<Worker, Job>();
  readonly #queue: Job[] = [];
  #failure: unknown;

  constructor(compression: Pick<Compression, 'type' | 'unit'>, threads = availableParallelism()) {
    this.unit = compression.unit;
    this.#setup = { type: compression.type, unit: compression.unit };
    this.#most = Math.max(1, threads);
  }

  encode(buffer: Uint8Array, length: number): Promise<EncodedUnits> {
    // Not slice(): that of a Buffer copies nothing.
    const bytes = new Uint8Array(buffer.subarray(0, length));
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#failure);
        return;
      }
      this.#queue.push({ request: { bytes }, resolve, reject });
      this.#start();
    });
  }

  async close(): Promise<void> {
    this.#fail(new LunetteError('CLOSED', 'the encoder is closed'));
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  #start(): void {
    while (this.#queue.length > 0) {
      const worker = this.#idle.pop() ?? (this.#workers.length < this.#most ? this.#begin() : undefined);
      if (worker === undefined) return;
      const job = this.#queue.shift() as Job;
      this.#busy.set(worker, job);
      worker.ref(); // the process waits for work, not for idle threads
      worker.postMessage(job.request, [job.request.bytes.buffer as ArrayBuffer]);
    }
  }

  #begin(): Worker {
    const worker = startWorker('encoder-worker', this.#setup);
    worker.unref();
    worker.on('message', (answer: EncodeAnswer) => {
      const job = this.#busy.get(worker);
      this.#busy.delete(worker);
      this.#idle.push(worker);
      worker.unref();
      if (job !== undefined) {
        if (typeof answer === 'string') job.reject(new LunetteError('INTERNAL', `compressing failed: ${answer}`));
        else job.resolve({ units: unpack(answer), release: () => undefined });
      }
      this.#start();
    });
    worker.on('error', (error) => this.#fail(error));
    worker.on('exit', () => this.#fail(new LunetteError('INTERNAL', 'a thread that compresses has ended')));
    this.#workers.push(worker);
    return worker;
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    for (const job of [...this.#busy.values(), ...this.#queue.splice(0)]) job.reject(this.#failure);
    this.#busy.clear();
  }
}

function unpack({ bytes, lengths }: Exclude<EncodeAnswer, string>): EncodedUnit[] {
  let at = 0;
  return Array.from(lengths, (length) => {
    if (length < 0) return null;
    at += length;
    return bytes.subarray(at - length, at);
  });
}
