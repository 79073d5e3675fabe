// Time: which frame is shown, playing at the clip's speed with its sound, and the timeline.

const MEASURED_S = 1; // Seconds over which the rate of frames is measured.

export class Player {
  // show: called with the number of the frame to draw; it returns whether the frame could be drawn.
  constructor(bake, sound, show) {
    this.show = show;
    this.setBake(bake);
    this.sound = sound;
    this.t = 0;
    this.isPlaying = false;
    this.isMuted = false;
    this.onChange = () => {};
    this.shownTimes = [];
    this.tick = this.tick.bind(this);
  }

  setBake(bake) {
    this.count = bake.clip.frames;
    const isUneven = bake.times_s.length > this.count;
    this.times = isUneven ? bake.times_s.map((time) => time - bake.times_s[0]) : null;
    this.fps = bake.fps;
    this.duration = isUneven ? this.times[this.count] : this.count / bake.fps;
    this.lead = bake.sound_lead_s ?? 0;
  }

  timeOf(t) {
    return this.times ? this.times[t] : t / this.fps;
  }

  frameAt(time) {
    if (!this.times) return Math.min(this.count - 1, Math.floor(time * this.fps + 1e-6));
    let t = 0;
    while (t < this.count - 1 && this.times[t + 1] <= time + 1e-6) t++;
    return t;
  }

  seek(t) {
    this.t = Math.max(0, Math.min(this.count - 1, Math.round(t)));
    if (this.isPlaying) this.begin();
    this.show(this.t);
    this.onChange();
  }

  toggle() {
    if (this.isPlaying) this.stop();
    else this.play();
  }

  play() {
    this.isPlaying = true;
    this.begin();
    this.onChange();
    requestAnimationFrame(this.tick);
  }

  begin() {
    this.startedAt = performance.now() - this.timeOf(this.t) * 1000;
    if (!this.sound) return;
    this.sound.currentTime = this.timeOf(this.t) + this.lead;
    this.sound.muted = this.isMuted;
    this.sound.play().catch(() => {}); // A browser may refuse sound before the first click.
  }

  stop() {
    this.isPlaying = false;
    this.sound?.pause();
    this.onChange();
  }

  mute() {
    this.isMuted = !this.isMuted;
    if (this.sound) this.sound.muted = this.isMuted;
    this.onChange();
  }

  tick(now) {
    if (!this.isPlaying) return;
    requestAnimationFrame(this.tick);
    let time = (now - this.startedAt) / 1000;
    if (time >= this.duration) {
      this.t = 0;
      this.begin();
      time = 0;
    }
    const t = this.frameAt(Math.max(0, time));
    if (t === this.t && this.isShown) return;
    this.t = t;
    this.isShown = this.show(t);
    if (!this.isShown) {
      // The frame is still on its way: the clock and the sound wait for it.
      this.startedAt = now - this.timeOf(t) * 1000;
      if (this.sound && !this.sound.paused) this.sound.pause();
      return;
    }
    if (this.sound?.paused) this.begin();
    this.shownTimes.push(now);
    while (this.shownTimes[0] < now - MEASURED_S * 1000) this.shownTimes.shift();
    this.onChange();
  }

  // Frames per second that are shown, measured while the video plays.
  get rate() {
    return this.isPlaying ? this.shownTimes.length / MEASURED_S : 0;
  }
}
