import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatJson, membersInOrder } from '../../../src/cli/qemu-json.ts';

// As qemu-img 7.2.22 printed it.
const PRINTED = `{
    "backing-filename-format": "qcow2",
    "virtual-size": 10485760,
    "filename": "sub/o.qcow2",
    "cluster-size": 65536,
    "format": "qcow2",
    "actual-size": 200704,
    "format-specific": {
        "type": "qcow2",
        "data": {
            "compat": "1.1",
            "compression-type": "zlib",
            "lazy-refcounts": false,
            "bitmaps": [
                {
                    "flags": [
                    ],
                    "name": "bm1",
                    "granularity": 32768
                }
            ],
            "refcount-bits": 16,
            "corrupt": false,
            "extended-l2": false
        }
    },
    "full-backing-filename": "sub/../b.qcow2",
    "backing-filename": "../b.qcow2",
    "dirty-flag": false
}`;

function reversed(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(reversed);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .map(([key, item]) => [key, reversed(item)])
      .reverse(),
  );
}

test('members come in the order of QEMU’s hash table, whatever the order they were put in', () => {
  assert.equal(formatJson(JSON.parse(PRINTED)), PRINTED);
  assert.equal(formatJson(reversed(JSON.parse(PRINTED))), PRINTED);
});

test('members without a value are left out', () => {
  assert.equal(formatJson({ format: 'raw', encrypted: undefined }), '{\n    "format": "raw"\n}');
});

test('empty objects and arrays keep their brackets on lines of their own', () => {
  assert.equal(formatJson({ children: [] }), '{\n    "children": [\n    ]\n}');
  assert.equal(formatJson({ data: {} }), '{\n    "data": {\n    }\n}');
});

test('of two members in one bucket the newer comes first', () => {
  const first = (...names: string[]): string | undefined =>
    membersInOrder(Object.fromEntries(names.map((name) => [name, 0])))[0]?.[0];
  const names = Array.from({ length: 4000 }, (_, i) => `key-${i}`);
  // Whose order depends on which came first share a bucket: among 4000 names and 512 buckets some do.
  const mate = names.slice(1).find((name) => first('key-0', name) !== first(name, 'key-0'));
  assert.ok(mate !== undefined);
  assert.equal(first('key-0', mate), mate);
  assert.equal(first(mate, 'key-0'), 'key-0');
});

test('strings are ASCII: quotes, control and other characters are escaped as QEMU does', () => {
  assert.equal(formatJson('a"b\\c/\n\t\x01\x7f'), '"a\\"b\\\\c/\\n\\t\\u0001\\u007F"');
  assert.equal(formatJson('ü€😀'), '"\\u00FC\\u20AC\\uD83D\\uDE00"');
  assert.equal(JSON.parse(formatJson('ü€😀\\u0041')), 'ü€😀\\u0041');
});
