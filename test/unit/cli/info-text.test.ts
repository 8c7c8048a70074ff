import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LayerInfo } from '../../../formats/image/layer.ts';
import { combine, imageInfo } from '../../../src/cli/image-info.ts';
import { renderInfo, snapshotTable } from '../../../src/cli/info-text.ts';

const PLAIN: LayerInfo = { format: 'raw', virtualSize: 1000, actualSize: 4096, dirty: false };

const info = (filename: string, layer: Partial<LayerInfo>) =>
  imageInfo(filename, { ...PLAIN, ...layer }, 1000, { children: false });

test('a plain image is four lines, and its size counts whole sectors', () => {
  assert.equal(
    renderInfo(info('disk.raw', {})),
    'image: disk.raw\nfile format: raw\nvirtual size: 1 KiB (1024 bytes)\ndisk size: 4 KiB',
  );
});

test('the lines that programs grep are spelled as by qemu-img', () => {
  const lines = renderInfo(
    info('a/disk.qcow2', {
      format: 'qcow2',
      virtualSize: 10 * 2 ** 30,
      clusterSize: 65536,
      dirty: true,
      encrypted: true,
      backingFile: 'base.qcow2',
      backingFormat: 'qcow2',
      specific: {
        compat: '1.1',
        bitmaps: [{ name: 'b', granularity: 65536, flags: ['auto'] }],
        'lazy-refcounts': false,
      },
    }),
  ).split('\n');
  assert.deepEqual(lines, [
    'image: a/disk.qcow2',
    'file format: qcow2',
    'virtual size: 10 GiB (10737418240 bytes)',
    'disk size: 4 KiB',
    'encrypted: yes',
    'cluster_size: 65536',
    'cleanly shut down: no',
    'backing file: base.qcow2 (actual path: a/base.qcow2)',
    'backing file format: qcow2',
    'Format specific information:',
    '    compat: 1.1',
    '    lazy refcounts: false',
    '    bitmaps:',
    '        [0]:',
    '            flags:',
    '                [0]: auto',
    '            name: b',
    '            granularity: 65536',
  ]);
});

test('snapshots are a table of fixed columns; long names push the rest to the right', () => {
  const snapshot = {
    id: '1',
    name: 'first',
    'vm-state-size': 3 * 2 ** 20,
    'date-sec': new Date(2026, 10, 22, 13, 42, 5).getTime() / 1000,
    'date-nsec': 0,
    'vm-clock-sec': 3725 + 9 * 3600,
    'vm-clock-nsec': 7_900_000,
    icount: undefined,
  };
  assert.deepEqual(snapshotTable([snapshot, { ...snapshot, name: 'a very long snapshot name', icount: 0 }]), [
    'ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT',
    '1         first               3 MiB 2026-11-22 13:42:05 10:02:05.007           ',
    '1         a very long snapshot name    3 MiB 2026-11-22 13:42:05 10:02:05.007          0',
  ]);
});

test('names from inside an image cannot write to the terminal', () => {
  const text = renderInfo(info('a', { backingFile: '\x1b[2Jx\nimage: fake' }));
  assert.match(text, /^backing file: \\x1b\[2Jx image: fake$/m);
});

test('a backing file’s place is put together as text, from the directory of the name that was given', () => {
  assert.equal(combine('disk.qcow2', 'base.qcow2'), 'base.qcow2');
  assert.equal(combine('sub/disk.qcow2', '../base.qcow2'), 'sub/../base.qcow2');
  assert.equal(combine('sub/disk.qcow2', '/images/base.qcow2'), '/images/base.qcow2');
  assert.equal(combine('sub/disk.qcow2', 'nbd://host/x'), 'nbd://host/x');
  assert.equal(combine('sub/disk.qcow2', './a:b'), 'sub/./a:b');
});

test('files that an image names are listed without being looked at', () => {
  const { children } = imageInfo(
    'disk.qcow2',
    { ...PLAIN, children: [{ name: 'data-file', path: '/etc/shadow' }] },
    1000,
    { children: true },
  );
  assert.deepEqual(
    children?.map(({ name, info: { filename } }) => [name, filename]),
    [
      ['data-file', '/etc/shadow'],
      ['file', 'disk.qcow2'],
    ],
  );
  assert.equal(children?.[0]?.info['virtual-size'], undefined);
});
