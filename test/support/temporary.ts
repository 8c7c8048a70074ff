/** Temporary directories that go away with the test that made them. */

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** What a maker needs of a test: something that runs when the test ends. Suites pass `{ after }` of node:test. */
export type Cleanup = Pick<TestContext, 'after'>;

/** Makes an empty directory under `parent` (default os.tmpdir()), removed with all it holds when the test ends. */
export async function temporaryDirectory(t: Cleanup, parent = tmpdir()): Promise<string> {
  const path = await mkdtemp(join(parent, 'lunette-test-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** A path for a file called `name` in a temporary directory of its own. The file does not exist yet unless `bytes` are given. */
export async function temporaryFile(t: Cleanup, name: string, bytes?: Uint8Array | string): Promise<string> {
  const path = join(await temporaryDirectory(t), name);
  if (bytes !== undefined) await writeFile(path, bytes);
  return path;
}
