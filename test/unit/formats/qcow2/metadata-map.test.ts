import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MetadataMap } from '../../../../formats/qcow2/metadata-map.ts';
import { randomFor } from '../../../support/random.ts';

test('the first cluster of a range that holds metadata is found, near and far', (t) => {
  const random = randomFor(t);
  const map = new MetadataMap(512);
  const marked = new Set<number>();
  for (let i = 0; i < 12; i++) {
    const cluster = random.below(i < 6 ? 20_000 : 2000);
    map.add(cluster * 512, 512);
    marked.add(cluster);
  }
  const removed = [...marked][0] as number;
  map.remove(removed * 512, 512);
  marked.delete(removed);
  for (let round = 0; round < 500; round++) {
    const from = random.below(20_000);
    const to = from + random.below(3000);
    const expected = Math.min(to, ...[...marked].filter((cluster) => cluster >= from));
    assert.equal(map.firstIn(from, to), expected, `[${from}, ${to})`);
  }
});
