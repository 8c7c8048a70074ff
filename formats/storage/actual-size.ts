import { fstatSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Storage } from './storage.ts';

/** Bytes that a storage's file takes on the host, as a LayerInfo's member; empty when there is no such figure. */
export async function actualSize(storage: Storage): Promise<{ actualSize?: number }> {
  try {
    const { blocks } = storage.fd !== null ? fstatSync(storage.fd) : await stat(storage.path);
    return { actualSize: blocks * 512 };
  } catch {
    return {};
  }
}
