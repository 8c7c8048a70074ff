/**
 * The process that configures the kernel's target: one request on standard input, a JSON object on a line; what came of it on standard
 * output. When standard input ends, however that came, everything it made is taken down again.
 *
 * It is a process of its own because its system calls wait, uninterruptibly, for whoever answers TCMU's netlink messages, which may be
 * the process that started this one.
 */

import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { codeOf, LunetteError } from '../../formats/core/errors.ts';
import { backstoreSteps } from './backstore.ts';
import { ConfigTree } from './execute.ts';
import { iscsiSteps } from './iscsi.ts';
import { blockDeviceOf, loopbackAddress, loopbackSteps } from './loopback.ts';
import { checkRequest, type TargetRequest } from './request.ts';

/** What the child says. */
export type ProvisionEvent =
  /** Everything is there; by LUN the block device, for tcm_loop. */
  | { readonly event: 'up'; readonly devices: readonly (string | undefined)[] }
  | { readonly event: 'failed'; readonly error: Pick<LunetteError, 'code' | 'message' | 'path' | 'help'> }
  /** Everything is gone, but for what is named. */
  | { readonly event: 'down'; readonly left: readonly string[] };

/** How long the kernel may take to find the disks of a loopback target. */
const DISCOVERY_MS = 20_000;

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv[2] ?? '/sys/kernel/config/target');

async function main(root: string): Promise<void> {
  // A Ctrl-C reaches the whole group; what to do about it is the parent's to say.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
  // The parent may be gone.
  process.stdout.on('error', () => undefined);
  const lines = createInterface({ input: process.stdin });
  const [line] = (await Promise.race([once(lines, 'line'), once(lines, 'close').then(() => [undefined])])) as [
    string | undefined,
  ];
  if (line === undefined) return;
  const ended = once(lines, 'close');
  const tree = new ConfigTree(root);
  try {
    const devices = await bringUp(tree, JSON.parse(line) as TargetRequest);
    say({ event: 'up', devices });
    await ended;
  } catch (error) {
    const { message, path, help } = error as Partial<LunetteError>;
    say({ event: 'failed', error: { code: codeOf(error), message: message ?? String(error), path, help } });
  }
  say({ event: 'down', left: tree.undo() });
}

function say(event: ProvisionEvent): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

async function bringUp(tree: ConfigTree, request: TargetRequest): Promise<(string | undefined)[]> {
  checkRequest(request);
  const backstores: string[] = [];
  for (const backstore of request.backstores) {
    const hba = tree.claimHba();
    tree.run(backstoreSteps(hba, backstore));
    backstores.push(`${hba}/${backstore.name}`);
  }
  if (request.fabric === 'iscsi') {
    tree.run(iscsiSteps(request, backstores));
    return backstores.map(() => undefined);
  }
  tree.run(loopbackSteps(request, backstores));
  const address = loopbackAddress(tree.root, request.wwn);
  return Promise.all(backstores.map((_path, lun) => discovered(address, lun)));
}

async function discovered(address: string, lun: number): Promise<string> {
  for (const until = Date.now() + DISCOVERY_MS; ; await delay(50)) {
    const device = blockDeviceOf(address, lun);
    if (device !== undefined) return device;
    if (Date.now() < until) continue;
    throw new LunetteError('TIMEOUT', `the kernel has not found LUN ${lun} of the loopback target (${address})`, {
      help: 'dmesg says why; the modules sd_mod and sr_mod make disks of units.',
    });
  }
}
