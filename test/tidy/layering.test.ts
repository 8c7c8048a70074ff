/** The layers of docs/architecture.md: who may import whom. There is no other arrow and no cycle. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ImportFound, importsOf, projectFiles, readText } from '../support/source.ts';

/** What a room may import besides itself. Rooms of formats/ and src/ are their folders; a file beside them is a room by its name. */
const ARROWS: Readonly<Record<string, readonly string[]>> = {
  'formats/core': [],
  'formats/storage': ['formats/core'],
  'formats/cache': ['formats/storage', 'formats/core'],
  'formats/image': ['formats/storage', 'formats/core'],
  // The interface that a driver implements, with the context it is given.
  'formats/driver': ['formats/image', 'formats/cache', 'formats/storage', 'formats/core'],
  'formats/raw': ['formats/driver', 'formats/image', 'formats/storage', 'formats/core'],
  'formats/luks': ['formats/storage', 'formats/core'],
  'formats/qcow2': [
    'formats/luks',
    'formats/driver',
    'formats/image',
    'formats/cache',
    'formats/storage',
    'formats/core',
  ],
  'formats/vmdk': ['formats/driver', 'formats/image', 'formats/cache', 'formats/storage', 'formats/core'],
  'formats/vdi': ['formats/driver', 'formats/image', 'formats/cache', 'formats/storage', 'formats/core'],
  'formats/registry': [
    'formats/raw',
    'formats/qcow2',
    'formats/vmdk',
    'formats/vdi',
    'formats/driver',
    'formats/storage',
    'formats/core',
  ],
  'formats/open': [
    'formats/registry',
    'formats/driver',
    'formats/image',
    'formats/cache',
    'formats/storage',
    'formats/core',
  ],
  // One call for the checks of all formats.
  'formats/check': [
    'formats/registry',
    'formats/driver',
    'formats/qcow2',
    'formats/vmdk',
    'formats/vdi',
    'formats/image',
    'formats/cache',
    'formats/storage',
    'formats/core',
  ],
  // One call that makes new images of all formats; it looks at what they stand on.
  'formats/create': [
    'formats/open',
    'formats/driver',
    'formats/raw',
    'formats/qcow2',
    'formats/vmdk',
    'formats/vdi',
    'formats/storage',
    'formats/core',
  ],
  // The library's public face names what is in all rooms.
  'formats/index': [
    'formats/luks',
    'formats/check',
    'formats/create',
    'formats/open',
    'formats/registry',
    'formats/driver',
    'formats/raw',
    'formats/luks',
    'formats/qcow2',
    'formats/luks',
    'formats/vmdk',
    'formats/vdi',
    'formats/luks',
    'formats/image',
    'formats/cache',
    'formats/storage',
    'formats/core',
  ],

  'src/native': ['formats/core'],
  'src/io': ['src/native', 'FORMATS'],
  'src/scsi': ['FORMATS'],
  'src/tcmu': ['src/scsi', 'src/io', 'FORMATS'],
  // Memory and batches of what goes out to a socket: knows no protocol.
  'src/wire': ['formats/core'],
  // Listening and the sockets of connections, whatever protocol: bytes to an endpoint, batches from it.
  'src/edge': ['src/io', 'src/wire', 'formats/core'],
  'src/iscsi': ['src/edge', 'src/scsi', 'src/wire', 'FORMATS'],
  'src/nbd': ['src/edge', 'src/io', 'src/wire', 'FORMATS'],
  'src/qemu': ['src/nbd', 'FORMATS'],
  'src/http': ['FORMATS'],
  'src/netlink': ['src/native', 'formats/core'],
  'src/lio': ['formats/core'],
  'src/dbus': ['formats/core'],
  'src/inspect': ['src/io', 'FORMATS'],
  'src/convert': ['src/io', 'FORMATS'],
  'src/open': ['src/io', 'src/nbd', 'src/qemu', 'src/http', 'FORMATS'],
  // The composition roots put the pieces together: units of src/scsi on images, handed to a transport.
  'src/daemon': [
    'src/dbus',
    'src/netlink',
    'src/lio',
    'src/tcmu',
    'src/iscsi',
    'src/nbd',
    'src/qemu',
    'src/scsi',
    'src/io',
    'src/open',
    'FORMATS',
  ],
  'src/server': ['src/daemon', 'src/iscsi', 'src/nbd', 'src/scsi', 'src/io', 'src/open', 'FORMATS'],
  'src/cli': ['src/daemon', 'src/inspect', 'src/convert', 'src/open', 'src/io', 'FORMATS'],
};

/** What src/ sees of the library: its face, the interfaces, and the vocabulary of core. Not the drivers, not the cache. */
const FORMATS = ['formats/index', 'formats/image', 'formats/storage', 'formats/driver', 'formats/core'];

/** Packages, and the rooms that may name them. What is in no row may not be imported. */
const PACKAGES: Readonly<Record<string, readonly string[]>> = {
  'lru-cache': ['formats/cache', 'src/http'],
  'lz4-napi': ['formats/cache'],
  'zstd-napi': ['formats/qcow2'],
  'fast-xml-parser': ['formats/vdi'],
  commander: ['src/cli'],
  pino: ['src/daemon', 'src/cli'],
  'prom-client': ['src/daemon'],
  'smol-toml': ['src/daemon'],
  zod: ['src/daemon'],
  'dbus-next': ['src/dbus'],
};

/** Codecs are native and optional: named in one file each, and loaded when they are first needed. */
const LAZY_IN_ONE_FILE = ['lz4-napi', 'zstd-napi'];

/** Loaded when a URL asks for them. */
const LAZY_ROOMS: Readonly<Record<string, readonly string[]>> = { 'src/open': ['src/nbd', 'src/qemu', 'src/http'] };

/** Sockets and files are at the edge: these rooms have none. */
const NO_SOCKETS = [
  'src/scsi',
  'src/tcmu',
  'src/wire',
  'formats/core',
  'formats/image',
  'formats/cache',
  'formats/qcow2',
];
const SOCKET_MODULES = ['node:net', 'node:tls', 'node:dgram', 'node:http', 'node:https', 'node:child_process'];

interface Module {
  readonly path: string;
  readonly room: string;
  readonly imports: readonly ImportFound[];
  readonly text: string;
}

function roomOf(path: string): string {
  const [top, second = ''] = path.split('/');
  return `${top}/${second.replace(/\.ts$/, '')}`;
}

function allowedFor(room: string): readonly string[] {
  return (ARROWS[room] ?? []).flatMap((name) => (name === 'FORMATS' ? FORMATS : [name]));
}

function packageOf(specifier: string): string {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

const modules: readonly Module[] = projectFiles()
  .filter((path) => /^(formats|src)\/.*\.ts$/.test(path))
  .map((path) => {
    const text = readText(path) as string;
    return { path, room: roomOf(path), imports: importsOf(path, text), text };
  });

/** Breaches as lines, so that one failure shows all of them. */
function breaches(judge: (module: Module, found: ImportFound) => string | undefined): string[] {
  return modules.flatMap((module) =>
    module.imports.flatMap((found) => {
      const why = judge(module, found);
      return why === undefined ? [] : [`${module.path}:${found.line} imports ${found.specifier}: ${why}`];
    }),
  );
}

test('every file of formats/ and src/ belongs to a room', () => {
  assert.ok(modules.length > 0);
  assert.deepEqual(
    modules.filter((module) => ARROWS[module.room] === undefined).map((module) => module.path),
    [],
  );
});

test('a room imports only what its arrows allow', () => {
  assert.deepEqual(
    breaches((module, { target }) => {
      if (target === undefined) return undefined;
      const room = roomOf(target);
      if (room === module.room || allowedFor(module.room).includes(room)) return undefined;
      return `no arrow from ${module.room} to ${room}`;
    }),
    [],
  );
});

test('the arrows have no cycle', () => {
  const visiting = new Set<string>();
  const done = new Set<string>();
  const visit = (room: string): void => {
    if (done.has(room)) return;
    assert.ok(!visiting.has(room), `a cycle of arrows goes through ${room}`);
    visiting.add(room);
    for (const next of allowedFor(room)) visit(next);
    visiting.delete(room);
    done.add(room);
  };
  for (const room of Object.keys(ARROWS)) visit(room);
});

test('no file imports itself through others', () => {
  const byPath = new Map(modules.map((module) => [module.path, module]));
  const done = new Set<string>();
  const cycles: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    const at = trail.indexOf(path);
    if (at >= 0) {
      cycles.push([...trail.slice(at), path].join(' > '));
      return;
    }
    if (done.has(path)) return;
    for (const found of byPath.get(path)?.imports ?? []) {
      // Types are gone at run time: two interfaces may name each other.
      if (found.target !== undefined && !found.typeOnly && !found.dynamic) visit(found.target, [...trail, path]);
    }
    done.add(path);
  };
  for (const { path } of modules) visit(path, []);
  assert.deepEqual(cycles, []);
});

test('relative imports name files that are there, with their extension', () => {
  const files = new Set(projectFiles());
  assert.deepEqual(
    breaches((_, { target }) => {
      if (target === undefined) return undefined;
      if (target === 'package.json') return undefined;
      return files.has(target) ? undefined : 'no such file in the project';
    }),
    [],
  );
});

test('the native face uses the errors of core, and of the rest of core only types', () => {
  assert.deepEqual(
    breaches((module, { target, typeOnly }) =>
      module.room === 'src/native' && !typeOnly && target?.startsWith('formats/') && target !== 'formats/core/errors.ts'
        ? 'src/native may import formats/core/errors.ts, and types of core'
        : undefined,
    ),
    [],
  );
});

test('only src/native loads the addon', () => {
  const loaders = modules.filter(({ text }) => /\.node['"`]|createRequire|process\.dlopen/.test(text));
  assert.deepEqual(
    // The launcher loads the whole program, which is a script.
    loaders
      .filter((module) => module.room !== 'src/native' && module.path !== 'src/cli/launch.ts')
      .map((module) => module.path),
    [],
  );
});

test('packages are named only in the rooms they are for, and modules of Node with their prefix', () => {
  assert.deepEqual(
    breaches((module, { specifier, target }) => {
      if (target !== undefined || specifier.startsWith('node:')) return undefined;
      const rooms = PACKAGES[packageOf(specifier)];
      if (rooms === undefined) return 'this package is in no row of the table';
      return rooms.includes(module.room) ? undefined : `only ${rooms.join(', ')} may`;
    }),
    [],
  );
});

test('each codec is loaded lazily, and in one file', () => {
  for (const codec of LAZY_IN_ONE_FILE) {
    const users = modules.filter((module) => module.imports.some((found) => packageOf(found.specifier) === codec));
    assert.ok(users.length <= 1, `${codec}: ${users.map((module) => module.path).join(', ')}`);
  }
  assert.deepEqual(
    breaches((_, { specifier, typeOnly, dynamic }) =>
      LAZY_IN_ONE_FILE.includes(packageOf(specifier)) && !typeOnly && !dynamic ? 'load it with import()' : undefined,
    ),
    [],
  );
});

test('src/open loads the rooms behind a URL when the URL asks for them', () => {
  assert.deepEqual(
    breaches((module, { target, typeOnly, dynamic }) => {
      const lazy = LAZY_ROOMS[module.room];
      if (lazy === undefined || target === undefined || typeOnly || dynamic) return undefined;
      return lazy.includes(roomOf(target)) ? 'load it with import()' : undefined;
    }),
    [],
  );
});

test('protocols, mappings and caches have no sockets and start no programs', () => {
  assert.deepEqual(
    breaches((module, { specifier, typeOnly }) =>
      NO_SOCKETS.includes(module.room) && !typeOnly && SOCKET_MODULES.includes(specifier)
        ? 'not at the edge'
        : undefined,
    ),
    [],
  );
});

test('importsOf sees every form of import', () => {
  const text = [
    "import a from './a.ts';",
    "import type { B } from '../b.ts';",
    "import { type C } from './c.ts';",
    "export * from './d.ts';",
    "export type { E } from './e.ts';",
    "const f = await import('./f.ts');",
    "const g = require('g');",
    "type H = import('./h.ts').H;",
    "import './i.ts';",
  ].join('\n');
  assert.deepEqual(
    importsOf('src/room/file.ts', text).map(({ target, specifier, typeOnly, dynamic }) => [
      target ?? specifier,
      typeOnly,
      dynamic,
    ]),
    [
      ['src/room/a.ts', false, false],
      ['src/b.ts', true, false],
      ['src/room/c.ts', true, false],
      ['src/room/d.ts', false, false],
      ['src/room/e.ts', true, false],
      ['src/room/f.ts', false, true],
      ['g', false, true],
      ['src/room/h.ts', true, false],
      ['src/room/i.ts', false, false],
    ],
  );
});
