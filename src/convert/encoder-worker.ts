/** A thread of WorkerEncoder: buffers of units come in, their streams go back in one buffer. */

import { parentPort, workerData } from 'node:worker_threads';
import { type EncodedUnit, loadClusterEncoder } from '../../formats/index.ts';

export interface EncoderSetup {
  /** As in Compression. */
  readonly type: string;
  readonly unit: number;
}

export interface EncodeRequest {
  readonly bytes: Uint8Array;
}

/** The units' bytes one after the other, and how many each has, -1 for zeros; or what went wrong. */
export type EncodeAnswer = { readonly bytes: Uint8Array; readonly lengths: Int32Array } | string;

const { type, unit } = workerData as EncoderSetup;
const encoder = loadClusterEncoder(type as 'zlib' | 'zstd', unit);

parentPort?.on('message', ({ bytes }: EncodeRequest) => {
  encoder
    .then((encode) => {
      const units: EncodedUnit[] = [];
      for (let at = 0; at < bytes.length; at += unit) units.push(encode(bytes.subarray(at, at + unit)));
      const answer = pack(units);
      parentPort?.postMessage(answer, [answer.bytes.buffer as ArrayBuffer]);
    })
    .catch((error: unknown) => {
      parentPort?.postMessage(error instanceof Error ? error.message : String(error));
    });
});

function pack(units: readonly EncodedUnit[]): Exclude<EncodeAnswer, string> {
  const lengths = Int32Array.from(units, (each) => (each === null ? -1 : each.length));
  const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + Math.max(0, length), 0));
  let at = 0;
  for (const each of units) {
    if (each === null) continue;
    bytes.set(each, at);
    at += each.length;
  }
  return { bytes, lengths };
}
