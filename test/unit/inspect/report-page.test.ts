import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fold, MAX_LISTED, shownOf } from '../../../src/inspect/fold.ts';
import { collectReport, measureUsage, renderReport } from '../../../src/inspect/index.ts';
import { createHost } from '../../../src/open/host.ts';
import { manySnapshots } from '../../support/many-snapshots.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

test('a list is folded only when it is long, and keeps both ends', () => {
  const list = Array.from({ length: 10 }, (_, i) => `item ${i}`);
  assert.deepEqual(fold(list, 10).between, []);
  assert.equal(shownOf(fold(list, 10)).length, 10);
  const { first, between, last } = fold(list, 4);
  assert.deepEqual(first, [
    { item: 'item 0', index: 0 },
    { item: 'item 1', index: 1 },
  ]);
  assert.deepEqual(between, list.slice(2, 8));
  assert.deepEqual(
    last.map(({ index }) => index),
    [8, 9],
  );
});

test('a page about very many snapshots shows the first and the last, says how many are between, and adds those up', async (t) => {
  const path = join(await temporaryDirectory(t), 'many.qcow2');
  const host = createHost();
  t.after(() => host.close());
  const pageOf = async (count: number): Promise<string> => {
    // One of those that are left out has clusters of its own.
    await writeFile(path, manySnapshots(count, new Set([1, MAX_LISTED])).bytes);
    return renderReport(await collectReport(path, { host, format: 'qcow2', nowMs: 0 }));
  };
  const count = 2 * MAX_LISTED;
  const page = await pageOf(count);
  const { snapshots } = await measureUsage(path, { host, format: 'qcow2' });
  const between = count - MAX_LISTED;
  const alone = snapshots.slice(MAX_LISTED / 2, -MAX_LISTED / 2).reduce((sum, { exclusive }) => sum + exclusive, 0);
  assert.ok(alone > between * 512); // their L1 tables, and what that one has
  const rows = [...page.matchAll(/<tr data-snapshot="(\d+)">/g)].map((found) => Number(found[1]));
  assert.deepEqual(
    rows,
    snapshots.map(({ snapshot }) => Number(snapshot.id)).filter((id) => id <= 500 || id > count - 500),
  );
  assert.match(
    page,
    new RegExp(
      `<tr data-snapshots="${between}">.*?${between} more between.*?data-figure="exclusive" data-bytes="${alone}"`,
    ),
  );
  assert.match(page, /1800 between the first and the last are left out here/);
  assert.match(page, new RegExp(`<li><small>${between} more snapshots</small></li>`));
  const tile = (text: string): number => Number(/data-figure="snapshots-exclusive" data-bytes="(\d+)"/.exec(text)?.[1]);
  assert.equal(
    tile(page),
    snapshots.reduce((sum, { exclusive }) => sum + exclusive, 0),
  );
  // More of them make it no longer, but for longer names.
  assert.ok((await pageOf(3 * MAX_LISTED)).length < 1.02 * page.length);
});
