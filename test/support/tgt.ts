/** Debian's tgtd, the other userspace iSCSI target: what ours is measured beside. */

import { freePort } from './ports.ts';
import { type RunningProcess, run, runOk, start } from './process.ts';
import { cpuSeconds } from './process-usage.ts';
import type { Cleanup } from './temporary.ts';

export interface TgtLun {
  readonly path: string;
  /** Parameters of the LUN: `thin_provisioning=1`, `removable=1`, `readonly=1`. */
  readonly params?: readonly string[];
}

export class Tgt {
  readonly process: RunningProcess;
  readonly port: number;
  /** LUN 1 is the first: tgt keeps LUN 0 for its controller. */
  readonly urls: readonly string[];
  readonly #control: number;

  constructor(process: RunningProcess, port: number, control: number, urls: readonly string[]) {
    this.process = process;
    this.port = port;
    this.#control = control;
    this.urls = urls;
  }

  get url(): string {
    return this.urls[0] as string;
  }

  cpuSeconds(): number {
    return cpuSeconds(this.process.pid);
  }

  async stop(): Promise<void> {
    // SIGTERM does not end it while targets exist, this does.
    for (const args of [
      ['--op', 'delete', '--mode', 'target', '--tid', '1', '--force'],
      ['--op', 'delete', '--mode', 'system'],
    ]) {
      await run('tgtadm', ['-C', String(this.#control), ...args]);
    }
    await this.process.stop('SIGTERM', 5000);
  }
}

const IQN = 'iqn.2026-11.lunette.test:tgt';

/** Starts a tgtd of our own, with one target, on a free port. It keeps its control socket apart by a number of ours. Needs root. */
export async function startTgt(t: Cleanup, luns: readonly TgtLun[]): Promise<Tgt> {
  const port = await freePort();
  // Its socket is /var/run/tgtd.ipc_abstract_namespace.N: any number that nobody else has.
  const control = 1000 + (process.pid % 30_000) + Math.floor(Math.random() * 1000);
  const process_ = start(t, 'tgtd', ['-f', '-C', String(control), '--iscsi', `portal=127.0.0.1:${port}`]);
  const tgtadm = (...args: string[]): Promise<string> =>
    runOk('tgtadm', ['-C', String(control), '--lld', 'iscsi', ...args]);
  for (let attempt = 0; ; attempt++) {
    const { status } = await run('tgtadm', ['-C', String(control), '--op', 'show', '--mode', 'sys']);
    if (status === 0) break;
    if (process_.ended || attempt > 100) throw new Error(`tgtd does not start\n${process_.stderr}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await tgtadm('--op', 'new', '--mode', 'target', '--tid', '1', '-T', IQN);
  const urls: string[] = [];
  for (const [at, { path, params }] of luns.entries()) {
    const lun = String(at + 1);
    await tgtadm('--op', 'new', '--mode', 'logicalunit', '--tid', '1', '--lun', lun, '-b', path);
    if (params !== undefined) {
      const text = params.join(',');
      await tgtadm('--op', 'update', '--mode', 'logicalunit', '--tid', '1', '--lun', lun, '--params', text);
    }
    urls.push(`iscsi://127.0.0.1:${port}/${IQN}/${lun}`);
  }
  await tgtadm('--op', 'bind', '--mode', 'target', '--tid', '1', '-I', 'ALL');
  const tgt = new Tgt(process_, port, control, urls);
  t.after(() => tgt.stop());
  return tgt;
}
